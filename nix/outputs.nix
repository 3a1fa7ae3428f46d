# The flake's outputs.
{ self, nixpkgs, ... }:
let
  inherit (nixpkgs) lib;
  systems = import ./systems.nix;
  # A package set may lack a system (tests/hostpkgs has one).
  forSystems = f: lib.genAttrs (builtins.filter (s: nixpkgs.legacyPackages ? ${s}) systems) f;
  mkLib = pkgs: import ./. { inherit pkgs; };
  # Of the template.
  lockFile = "qwen3-0.6b.lock.json";
  # For the flake's own outputs, not for callers of mkLib: allowed are the server that carries
  # NVIDIA's libcudart (nix/tritonserver-cpu.nix), and for outputs with `rtx` in their name
  # NVIDIA's TensorRT for RTX, the engines that it makes and their servers (docs/reference/rtx.md).
  scopeOf =
    system:
    mkLib (
      import nixpkgs {
        inherit system;
        config.allowUnfreePredicate =
          package:
          builtins.elem (lib.getName package) [
            "tritonserver-cpu"
            "tensorrt-rtx-cu13-libs"
            "tensorrt-rtx-cu13-bindings"
          ]
          # Not getName, which ends a name before its first digit.
          ||
            builtins.match ".*-engine-rtx|.*-rtx-triton-(repo|server)" (package.name or "") != null;
      }
    );
in
{
  lib = {
    inherit mkLib;
    check = import ./check { inherit lib; };
  };

  # The command, as packages are named, and the functions beside it.
  overlays.default = final: _: {
    enginixLib = mkLib final;
    inherit (final.enginixLib) enginix;
  };

  legacyPackages = forSystems scopeOf;

  packages = forSystems (system: import ./packages.nix (scopeOf system));

  apps = forSystems (system: import ./apps.nix (scopeOf system) self);

  checks = forSystems (system: import ../tests/nix/checks.nix (scopeOf system) self);

  devShells = forSystems (system: {
    default = import ./shell.nix (scopeOf system);
  });

  formatter = forSystems (system: nixpkgs.legacyPackages.${system}.nixfmt-tree);

  nixosModules = {
    # By path, for messages and for `disabledModules`; a set around it, because Nix 2.8 takes no
    # path as a module.
    enginix = {
      _class = "nixos";
      _file = toString ./nixos/default.nix;
      key = "${toString ./nixos}#enginix";
      imports = [ ./nixos ];
    };
    default = self.nixosModules.enginix; # convention
  };

  templates.fleet = {
    path = ../templates/fleet;
    description = "Machines with GPUs that serve one model, each with an engine for its GPU";
    welcomeText = ''
      # A small fleet

      Name your machines and GPUs in flake.nix, put what `nixos-generate-config` writes into
      hosts/, pin the model, and add everything to git:

          nix run github:enginix/enginix#enginix-core -- lock Qwen/Qwen3-0.6B -o ${lockFile}
          git add .
          nixos-rebuild switch --flake .#hopper --target-host hopper
    '';
  };

  templates.default = {
    path = ../templates/default;
    description = "A flake that serves one model";
    welcomeText = ''
      # One model, pinned and served

      Pin the model; this downloads no weight. Then add it to git: a flake in a git
      repository sees only the files that git tracks.

          nix run github:enginix/enginix#enginix-core -- lock Qwen/Qwen3-0.6B -o ${lockFile}
          git add flake.nix ${lockFile}

      Then build and serve it:

          nix run .
    '';
  };
}
