# The flake, without flakes, over the package set that answers as nixpkgs does (tests/nixpkgs); and NixOS configurations over
# it and NixOS' option types, where nixpkgs' own lib is at hand.
{
  nixpkgsLib ? null,
  # Arguments of nixpkgs: config, overlays.
  arguments ? { },
}:
let
  root = ../..;
  lib = if nixpkgsLib == null then import ../nixpkgs/lib.nix else import nixpkgsLib;
  packageSet = system: import ../nixpkgs ({ inherit system lib; } // arguments);
  nixpkgs = {
    inherit lib;
    outPath = toString ../nixpkgs;
    legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] packageSet;
  };
  flake = (import (root + "/flake.nix")).outputs {
    self = flake // {
      outPath = toString root;
      inputs = { inherit nixpkgs; };
    };
    inherit nixpkgs;
  };
  pkgs = nixpkgs.legacyPackages.x86_64-linux;
  nixos = import ../nixpkgs/nixos.nix { inherit lib; };
in
{
  inherit
    flake
    lib
    pkgs
    nixos
    ;
  nixpkgsRoot = ../nixpkgs;

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
