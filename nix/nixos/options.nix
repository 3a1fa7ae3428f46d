# Types and documentation only; the other files give them meaning.
self:
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types literalExpression;
  parts = self.legacyPackages.${pkgs.stdenv.hostPlatform.system};
  shared = config.services.enginix;

  server = import ./server-options.nix { inherit lib shared; };
in
{
  options.services.enginix = {
    enable = lib.mkEnableOption "Triton servers of enginix models";

    package = mkOption {
      type = types.package;
      default = parts.enginix;
      defaultText = literalExpression "enginix.legacyPackages.\${system}.enginix";
      description = "The enginix command that starts servers.";
    };

    tritonserver = mkOption {
      type = types.package;
      default = parts.tritonserver;
      defaultText = literalExpression "enginix.legacyPackages.\${system}.tritonserver";
      description = "The tritonserver of reference repositories.";
    };

    servers = mkOption {
      type = types.attrsOf (types.submodule server);
      default = { };
      example = literalExpression ''
        {
          tiny.engine = enginix.packages.''${system}.tiny-qwen3-engine;
        }
      '';
      description = "Servers by name; each is the service `enginix-<name>`.";
    };

    gateway = import ./gateway-options.nix { inherit lib; };

    driverVersion = mkOption {
      type = types.nullOr types.str;
      default =
        if config.hardware.nvidia.enabled or false then config.hardware.nvidia.package.version else null;
      defaultText = literalExpression "the version of config.hardware.nvidia.package where that is in use";
      example = "590.44.01";
      description = "Version of the GPU driver, compared with the runtimes' least; null does not compare.";
    };

    prometheus.enable = mkOption {
      type = types.bool;
      default = false;
      description = "Whether this machine's Prometheus collects the metrics of every server.";
    };

    grafana.enable = mkOption {
      type = types.bool;
      default = false;
      description = "Whether this machine's Grafana gets a dashboard of the servers.";
    };

    gpuBuilder = {
      enable = mkOption {
        type = types.bool;
        default = false;
        description = ''
          Whether this machine builds engines: lets Nix builds that ask for `cuda` see the GPU inside the sandbox
          (`programs.nix-required-mounts`, nixpkgs 26.05 or later) and announces the features that `mkEngine` asks for.
          `nix.settings.system-features` then holds NixOS' own defaults and these.
        '';
      };

      sms = mkOption {
        type = types.listOf types.ints.positive;
        default = [ ];
        example = [ 90 ];
        description = "SM versions of this machine's GPUs; an engine is built only where its own is among them.";
      };
    };
  };
}
