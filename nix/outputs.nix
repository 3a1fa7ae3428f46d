# The flake's outputs. Systems: the ones NVIDIA's runtimes exist for.
{ self, nixpkgs, ... }:
let
  inherit (nixpkgs) lib;
  systems = [
    "x86_64-linux"
    "aarch64-linux"
  ];
  # A package set may lack a system (tests/hostpkgs has one).
  forSystems = f: lib.genAttrs (builtins.filter (s: nixpkgs.legacyPackages ? ${s}) systems) f;
  mkLib = pkgs: import ./. { inherit pkgs; };
  # The flake's own outputs, and nothing of who calls mkLib: the one package that is not free in nixpkgs' sense is
  # allowed, which carries NVIDIA's libcudart (nix/tritonserver-cpu.nix).
  scopeOf =
    system:
    mkLib (
      import nixpkgs {
        inherit system;
        config.allowUnfreePredicate = package: lib.getName package == "tritonserver-cpu";
      }
    );
in
{
  lib = {
    inherit mkLib;
    check = import ./check { inherit lib; };
  };

  overlays.default = final: _: { enginix = mkLib final; };

  legacyPackages = forSystems scopeOf;

  packages = forSystems (system: import ./packages.nix (scopeOf system));

  apps = forSystems (system: import ./apps.nix (scopeOf system) self);

  checks = forSystems (system: import ../tests/nix/checks.nix (scopeOf system) self);

  devShells = forSystems (system: {
    default = import ./shell.nix (scopeOf system);
  });

  formatter = forSystems (system: nixpkgs.legacyPackages.${system}.nixfmt-tree);

  nixosModules = {
    enginix = import ./nixos self;
    default = self.nixosModules.enginix; # convention
  };

  templates.default = {
    path = ../templates/default;
    description = "A flake that serves one model";
  };
}
