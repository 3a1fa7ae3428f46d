# A server's options -> its systemd service. Plain functions: `make unit` and tests evaluate it without nixpkgs.
{
  lib,
  # systemd's quoting of a command line, not a shell's: `%` and `$` mean something to it.
  escape,
}:
let
  runtimes = (lib.importJSON ../../python/enginix/data/runtimes.json).runtimes;
  isLoopback = host: host == "127.0.0.1" || host == "::1";
in
name: server:
# The root of an image-based server (image.nix), null for others.
image:
let
  gpu = server.gpus != [ ];
  row = runtimes.${server.repo.runtime or "reference"};
  list = lib.concatMapStringsSep "," toString server.gpus;
in
{
  description = "Triton Inference Server of enginix: ${name}";
  wantedBy = [ "multi-user.target" ];
  after = [ "network.target" ];

  environment = {
    HOME = "%C/enginix-${name}";
    XDG_CACHE_HOME = "%C/enginix-${name}";
  }
  // lib.optionalAttrs (image != null) row.environment
  // server.environment;

  serviceConfig = {
    Type = "notify";
    NotifyAccess = "main";
    ExecStart = escape (
      [
        (lib.getExe server.package)
        "serve"
        "${server.repo}"
        "--tritonserver"
        (if image != null then row.paths.triton else "${server.tritonserver}")
      ]
      ++ lib.optionals (image != null) [
        "--model-runtime"
        server.repo.runtime
        "--python"
        row.paths.python
      ]
      ++ lib.optionals gpu [
        "--gpus"
        list
      ]
      ++ [
        "--host"
        server.host
        "--http-port"
        (toString server.httpPort)
        "--grpc-port"
        (toString server.grpcPort)
        "--metrics-port"
        (toString server.metricsPort)
        "--start-timeout"
        (toString server.startTimeout)
        "--exit-timeout"
        (toString server.exitTimeout)
      ]
      ++ server.extraArgs
    );
    Restart = "on-failure";
    RestartSec = 10;
    # `enginix serve` gives up first, with the reason; systemd's own limit only catches a wedged one.
    TimeoutStartSec = server.startTimeout + 60;
    # Triton's own time, then 10 s until `enginix serve` kills it, then tidying up.
    TimeoutStopSec = server.exitTimeout + 20;
    # SIGTERM to `enginix serve` alone: the server's Python processes must live until their requests are answered.
    KillMode = "mixed";

    DynamicUser = true;
    CacheDirectory = "enginix-${name}";
    RuntimeDirectory = "enginix-${name}";
    WorkingDirectory = "%t/enginix-${name}";
    UMask = "0077";
    LimitNOFILE = 65536;

    AmbientCapabilities = [ "" ];
    CapabilityBoundingSet = [ "" ];
    KeyringMode = "private";
    LockPersonality = true;
    MemoryDenyWriteExecute = false; # torch, CUDA and libffi map executable memory
    NoNewPrivileges = true;
    PrivateMounts = true;
    PrivateTmp = true;
    PrivateUsers = true; # device nodes of NVIDIA are 0666, so an unmapped group does not matter
    ProcSubset = "all"; # torch reads /proc/meminfo and /proc/cpuinfo
    ProtectClock = true;
    ProtectControlGroups = true;
    ProtectHome = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    ProtectProc = "invisible";
    ProtectSystem = "strict";
    RemoveIPC = true;
    # Triton's Python backend talks through /dev/shm, so PrivateIPC stays off.
    RestrictAddressFamilies = [
      "AF_INET"
      "AF_INET6"
      "AF_UNIX"
    ];
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    SystemCallArchitectures = "native";
    SystemCallErrorNumber = "EPERM";
    # @resources: NUMA policies (mbind, set_mempolicy) of CUDA and OpenMP, and thread affinity.
    SystemCallFilter = [
      "@system-service"
      "@resources"
      "~@privileged"
    ];

    # Without a GPU no device but the pseudo ones. With one, /dev is the machine's, and only NVIDIA's classes open.
    DevicePolicy = "closed";
    PrivateDevices = !gpu;
  }
  // lib.optionalAttrs gpu {
    # Class names are those of /proc/devices, and drivers differ in them; absent ones are ignored.
    DeviceAllow = map (class: "char-${class} rw") [
      "nvidia"
      "nvidia-frontend"
      "nvidiactl"
      "nvidia-uvm"
      "nvidia-caps"
      "nvidia-caps-imex-channels"
      "nvidia-nvswitch"
    ];
    # Pinned host memory, and stacks of the kernels' host side.
    LimitMEMLOCK = "infinity";
    LimitSTACK = "64M";
  }
  // lib.optionalAttrs (isLoopback server.host) {
    IPAddressDeny = "any";
    IPAddressAllow = "localhost";
  }
  // lib.optionalAttrs (image != null) {
    # The image is the root, read-only; the store beside it has the repository and this command.
    RootDirectory = image.root;
    MountAPIVFS = true;
    TemporaryFileSystem = [
      "/run"
      "/var"
    ];
    BindReadOnlyPaths = [
      "/nix/store"
      "-/run/opengl-driver"
      "/run/systemd/notify"
    ]
    ++ map (directory: "-${image.rootfs}/${directory}:/${directory}") image.directories;
  };
}
