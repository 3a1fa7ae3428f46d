# The options of one server. Types and documentation only.
{
  lib,
  # config.services.enginix, for defaults that all servers share.
  shared,
}:
let
  inherit (lib)
    literalExpression
    mkEnableOption
    mkOption
    types
    ;
in
{
  options = {
    enable = mkOption {
      type = types.bool;
      default = true;
      description = "Whether to run this server.";
    };

    engine = mkOption {
      type = types.nullOr types.package;
      default = null;
      example = literalExpression "enginix.packages.\${system}.tiny-qwen3-engine";
      description = ''
        Engine to serve, from `mkEngine`: by Triton, over a model repository that the module makes
        of it and `settings`, or by its own server (`ownServer`). Set either this or `repo`.
      '';
    };

    repo = mkOption {
      type = types.nullOr types.package;
      default = null;
      example = literalExpression "enginix.packages.\${system}.tiny-qwen3-triton-repo";
      description = ''
        Model repository to serve, from `mkTritonRepo`. It holds the engine, runtime and ranks that
        it needs.
      '';
    };

    ownServer = mkOption {
      type = types.nullOr types.bool;
      default = null;
      defaultText = literalExpression "engine.kind == \"edgellm\"";
      description = ''
        Whether the engine's own OpenAI server serves it in place of Triton:
        `tensorrt-edgellm-serve` of kind edgellm, which has no Triton repository; `trtllm-serve` of
        the kinds tensorrt and llmapi. It listens on `httpPort`.
      '';
    };

    settings = mkOption {
      type = types.submodule (import ./settings.nix { inherit lib; });
      default = { };
      example = {
        maxBatchSize = 8;
        maxQueueSize = 64;
      };
      description = ''
        Arguments of `mkTritonRepo` for `engine`, or options of the engine's own server. Unknown
        names, and names of another kind, are refused.
      '';
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
      description = ''
        The tritonserver of reference repositories. Others are served by the one in their runtime's
        image.
      '';
    };

    host = mkOption {
      type = types.str;
      default = "127.0.0.1";
      description = ''
        Listen address for HTTP, gRPC and metrics. Triton is no security boundary: leave it on
        loopback and put a gateway before it. On loopback the unit may exchange packets with this
        machine only.
      '';
    };

    openWithoutKey = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether everybody who reaches `host` may use this server. Triton and trtllm-serve ask for no
        key: without this option an address other than loopback is refused.
      '';
    };

    signers = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = literalExpression "./allowed_signers";
      description = ''
        File of allowed signers, as git's `gpg.ssh.allowedSignersFile`. The server starts only if
        one of them signed the manifest of `engine`, or of `repo` where that is set, and if every
        file is the one that the manifest lists: neither the store nor a cache has to be trusted
        for it. The first start reads all files, later ones read weights only if they changed.
      '';
    };

    signature = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = literalExpression "./signatures/enginix.json.sig";
      description = ''
        Signature that `enginix sign DIR -o ./signatures` wrote; null is the file beside the
        manifest.
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
      description = "Port of the gRPC endpoint; the engine's own server has none.";
    };

    metricsPort = mkOption {
      type = types.port;
      default = 8002;
      description = "Port of Triton's Prometheus metrics; an engine's own server has no such port.";
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description =
        "Whether to open the HTTP and gRPC ports in the firewall; the metrics port stays closed.";
    };

    # Removed: assertions.nix names what replaces it.
    openai = mkOption {
      type = types.anything;
      default = null;
      visible = false;
      description = "Removed; `services.enginix.gateway` has OpenAI's interface.";
    };

    apiKeyFile = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/run/secrets/edgellm-key";
      description = ''
        File with the key that clients of the engine's own server send (kind edgellm). systemd hands
        it to the service as a credential: the key is neither in the store nor in the unit's text
        nor on a command line.
      '';
    };

    gpus = mkOption {
      type = types.listOf (types.either types.ints.unsigned types.str);
      default = [ ];
      example = [ "GPU-2f0c1b6e-6a5d-4d0e-9b7b-1f2e3d4c5b6a" ];
      description = ''
        GPUs of this server, one a rank, by index or by UUID (`nvidia-smi -L`). An index can change
        with a reboot, a UUID does not. Empty for a repository that runs on the CPU: the unit then
        sees no device at all.
      '';
    };

    shareGpus = mkOption {
      type = types.bool;
      default = false;
      description =
        "Whether other servers may use the same GPUs. All servers that share a GPU need it.";
    };

    memory = mkOption {
      type = types.nullOr types.ints.positive;
      default = null;
      example = 24576;
      description = ''
        MiB of each GPU that this server takes, key-value cache included. With it, servers that
        share a GPU are refused when they do not fit together. The option itself limits nothing;
        `settings.parameters.kv_cache_free_gpu_mem_fraction` does, and `settings.kvCacheFraction` of
        trtllm-serve (`ownServer`).
      '';
    };

    rollout = {
      trial = mkOption {
        type = types.bool;
        default = true;
        description = ''
          Whether a changed server is first started beside the running one, on free ports, when the
          machine switches to a new generation. If it cannot answer, the switch is refused, and the
          old server continues.
        '';
      };

      memory = mkOption {
        type = types.nullOr types.ints.positive;
        default = null;
        example = 8192;
        description = ''
          MiB that must be free for a trial, on each of `gpus`, or of the machine's memory for a
          server without GPUs. The default is weights and workspace of the engine's memory plan;
          without a memory plan there is no trial on a GPU.
        '';
      };
    };

    flags = mkOption {
      type = types.attrsOf (
        types.oneOf [
          types.bool
          types.int
          types.float
          types.str
        ]
      );
      default = { };
      example = {
        log-format = "ISO8601";
        http-thread-count = 16;
      };
      description = ''
        Options of tritonserver by their names; `mkTritonServer` checks them against the server's
        version. Triton has no JSON log; `journalctl -o json ENGINIX_SERVER=<name>` gives the
        journal's entries of a server as JSON.
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
      description = "Seconds that running requests have after a stop; systemd waits 20 more.";
    };

    memoryMax = mkOption {
      type = types.nullOr (types.either types.ints.positive types.str);
      default = null;
      example = "48G";
      description = ''
        Largest amount of the machine's memory that the service may take (systemd's `MemoryMax=`);
        the kernel ends it beyond. Null sets no limit. Shared memory and files in
        /tmp count.
      '';
    };

    tasksMax = mkOption {
      type = types.nullOr types.ints.positive;
      default = null;
      example = 4096;
      description = ''
        Largest number of processes and threads of the service (systemd's `TasksMax=`). Null leaves
        systemd's own limit.
      '';
    };

    environment = mkOption {
      type = types.attrsOf types.str;
      default = { };
      example = {
        LD_LIBRARY_PATH = "/run/opengl-driver/lib";
      };
      description = ''
        Environment of the enginix command, as written here: `%` is no specifier of systemd. The
        server itself gets only the variables that `enginix serve --dry-run` shows.
      '';
    };

    extraArgs = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Further arguments of `enginix serve`, or of the engine's own server.";
    };
  };
}
