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

  server = {
    options = {
      enable = mkOption {
        type = types.bool;
        default = true;
        description = "Whether to run this server.";
      };

      repo = mkOption {
        type = types.package;
        example = literalExpression "enginix.packages.\${system}.tiny-qwen3-triton-repo";
        description = "Model repository to serve, from `mkTritonRepo`. It says which engine, runtime and ranks it needs.";
      };

      package = mkOption {
        type = types.package;
        default = shared.package;
        defaultText = literalExpression "config.services.enginix.package";
        description = "The enginix command that starts the server.";
      };

      tritonserver = mkOption {
        type = types.nullOr types.package;
        default = shared.tritonserver;
        defaultText = literalExpression "config.services.enginix.tritonserver";
        description = "The tritonserver of reference repositories. Others are served by the one in their runtime's image.";
      };

      host = mkOption {
        type = types.str;
        default = "127.0.0.1";
        description = ''
          Address of all three endpoints. Triton is no security boundary: leave it on loopback and put a gateway before
          it. On loopback the unit may exchange packets with this machine only.
        '';
      };

      httpPort = mkOption {
        type = types.port;
        default = 8000;
        description = "Port of the HTTP endpoint.";
      };

      grpcPort = mkOption {
        type = types.port;
        default = 8001;
        description = "Port of the gRPC endpoint.";
      };

      metricsPort = mkOption {
        type = types.port;
        default = 8002;
        description = "Port of the Prometheus metrics.";
      };

      openFirewall = mkOption {
        type = types.bool;
        default = false;
        description = "Whether to open the HTTP and gRPC ports in the firewall; never the metrics.";
      };

      gpus = mkOption {
        type = types.listOf (types.either types.ints.unsigned types.str);
        default = [ ];
        example = [ "GPU-2f0c1b6e-6a5d-4d0e-9b7b-1f2e3d4c5b6a" ];
        description = ''
          GPUs of this server, one a rank, by index or by UUID (`nvidia-smi -L`). An index can change with a reboot, a UUID
          does not. Empty for a repository that runs on the CPU: the unit then sees no device at all.
        '';
      };

      shareGpus = mkOption {
        type = types.bool;
        default = false;
        description = "Whether other servers may use the same GPUs. All that share one must say so.";
      };

      memory = mkOption {
        type = types.nullOr types.ints.positive;
        default = null;
        example = 24576;
        description = ''
          MiB of each GPU that this server takes, key-value cache included. With it, servers that share a GPU are refused
          when they do not fit together; it limits nothing by itself (`parameters.kv_cache_free_gpu_mem_fraction` of `mkTritonRepo` does).
        '';
      };

      startTimeout = mkOption {
        type = types.ints.positive;
        default = 600;
        description = "Seconds that loading the model and the first generation may take.";
      };

      exitTimeout = mkOption {
        type = types.ints.between 1 86400;
        default = 30;
        description = "Seconds that requests under way have to finish after a stop was asked for; systemd waits 20 more.";
      };

      environment = mkOption {
        type = types.attrsOf types.str;
        default = { };
        example = {
          LD_LIBRARY_PATH = "/run/opengl-driver/lib";
        };
        description = "Environment of the enginix command. The server itself gets what `enginix serve --dry-run` shows, no more.";
      };

      extraArgs = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "Further arguments of `enginix serve`.";
      };
    };
  };
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
          tiny.repo = enginix.packages.''${system}.tiny-qwen3-triton-repo;
        }
      '';
      description = "Servers by name; each is the service `enginix-<name>`.";
    };

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
