# The flake, without flakes, over the package set that answers as nixpkgs does (tests/nixpkgs); and
# NixOS configurations over it and NixOS' option types, where nixpkgs' own lib is at hand.
{
  # The set's directory: ../nixpkgs, or a copy that has nixpkgs' own lib.
  nixpkgsRoot ? ../nixpkgs,
  # Of a host's nixpkgs: config, overlays. The one package that is not free and that a server needs
  # is allowed.
  config ? {
    allowUnfreePredicate = package: package.pname or null == "tritonserver-cpu";
  },
  overlays ? [ ],
}:
let
  root = ../..;
  lib = import (nixpkgsRoot + "/lib.nix");
  nixpkgs = {
    inherit lib;
    outPath = toString nixpkgsRoot;
    legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (system: import nixpkgsRoot { inherit system; });
  };
  flake = (import (root + "/flake.nix")).outputs {
    self = flake // {
      outPath = toString root;
      inputs = { inherit nixpkgs; };
    };
    inherit nixpkgs;
  };
  # What the configuration of a host calls pkgs.
  pkgs = import nixpkgsRoot {
    system = "x86_64-linux";
    inherit config overlays;
  };
  nixos = import ../nixpkgs/nixos.nix { inherit lib; };
in
{
  inherit
    flake
    lib
    pkgs
    nixos
    nixpkgsRoot
    ;

  # Modules as a host's configuration has them.
  evaluate = modules: nixos.evaluate { inherit pkgs modules; };

  # Settings of services.enginix as the only configuration of a host; `names` as in docs.nix.
  host =
    settings:
    nixos.evaluate {
      inherit pkgs;
      modules = [
        flake.nixosModules.default
        { services.enginix = { enable = true; } // settings; }
      ];
    };

  # An engine as mkEngine returns it, of a GPU and runtime that are never built here.
  engine =
    kind:
    let
      runtime = if kind == "edgellm" then "edgellm-0.11.0" else "trtllm-1.2.1";
      functions = flake.legacyPackages.x86_64-linux;
      stack = functions.mkRuntime { id = runtime; };
    in
    {
      type = "derivation";
      name = "big-engine";
      outPath = "/nix/store/x-big-engine";
      inherit kind runtime;
      modelName = "big";
      model = { };
      request.limits.maxBatchSize = 16;
      parallel = {
        tensorParallel = 1;
        pipelineParallel = 1;
      };
    }
    // (
      if kind == "edgellm" then
        { serve = _: pkgs.jq; }
      else
        { runtimePackage = stack; }
    );
}
