# The NixOS module over nixpkgs' real lib, with stubs for the few options of NixOS that it sets.
{
  lib,
  settings,
}:
let
  # The flake, for the module's package defaults.
  self.legacyPackages.x86_64-linux = {
    enginix = package "enginix";
    tritonserver = package "tritonserver";
  };
  package = name: {
    type = "derivation";
    inherit name;
    outPath = "/nix/store/00000000000000000000000000000000-${name}";
    meta.mainProgram = name;
    runtime = "reference";
  };
  stubs = {
    options = {
      assertions = lib.mkOption { type = lib.types.listOf lib.types.unspecified; };
      networking.firewall.allowedTCPPorts = lib.mkOption { type = lib.types.listOf lib.types.port; };
      systemd.services = lib.mkOption { type = lib.types.attrsOf lib.types.unspecified; };
    };
    config.networking.firewall.allowedTCPPorts = [ ];
  };
  evaluated = lib.evalModules {
    class = "nixos";
    modules = [
      (import ../../nix/nixos self)
      stubs
      {
        services.enginix = {
          enable = true;
          repo = package "tiny-triton-repo";
        }
        // settings;
      }
    ];
    specialArgs = {
      pkgs.stdenv.hostPlatform.system = "x86_64-linux";
      # nixpkgs' own quotes for systemd; joining is enough for arguments without spaces.
      utils.escapeSystemdExecArgs = lib.concatStringsSep " ";
    };
  };
  inherit (evaluated) config;
in
{
  failing = map (a: a.message) (builtins.filter (a: !a.assertion) config.assertions);
  ports = config.networking.firewall.allowedTCPPorts;
  service = config.systemd.services.enginix.serviceConfig;
}
