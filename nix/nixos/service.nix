# A server's options -> its systemd service. Plain functions: `make unit` and tests evaluate it
# without nixpkgs.
{
  lib,
  # systemd's quoting of a command line, not a shell's: `%` and `$` are special in it.
  escape,
  # The program that verifies signatures.
  sshKeygen ? "ssh-keygen",
}:
let
  runtimes = (lib.importJSON ../../python/enginix/data/runtime/runtimes.json).runtimes;
  commandWords = import ../command-words.nix { inherit lib; };
  inherit (import ../check/address.nix) isLoopback local;
in
name: server:
# Output of served.nix.
served:
# The root of an image-based server (image.nix), null for others.
image:
let
  gpu = server.gpus != [ ];
  row = served.engine.runtimePackage.row or runtimes.${served.runtime};
  list = lib.concatMapStringsSep "," toString server.gpus;
  enginix = lib.getExe server.package;
  # The server of another package set than the image's is bound into it with the store.
  triton = [
    enginix
    "serve"
    "${served.repo}"
  ]
  ++ commandWords (
    {
      gpus = if gpu then list else null;
      inherit (server) host;
      http-port = server.httpPort;
      grpc-port = server.grpcPort;
      metrics-port = server.metricsPort;
      start-timeout = server.startTimeout;
      exit-timeout = server.exitTimeout;
    }
    // (
      if image != null then
        {
          tritonserver = row.paths.triton;
          model-runtime = served.runtime;
          inherit (row.paths) python;
        }
      else
        { inherit (server) tritonserver; }
        // lib.optionalAttrs (served.engine ? servingPython) {
          python = "${served.engine.servingPython}/bin/python3";
        }
    )
  )
  ++ served.flags;
  signedArtefact = if server.engine != null then served.engine else served.repo;
  # Commands that must succeed before anything is loaded.
  preflight =
    lib.optional (server.signers != null) (
      [
        enginix
        "verify"
        "${signedArtefact}"
      ]
      ++ commandWords {
        inherit (server) signers signature;
        ssh-keygen = sshKeygen;
      }
    )
    # The engine against this GPU, driver and runtime, in milliseconds; `enginix serve` does it by
    # itself.
    ++ lib.optional (served.ownServer && gpu) [
      enginix
      "check"
      "${served.engine}"
    ];
  # The command names a key's file by its credential.
  credentials = lib.optional (server.apiKeyFile != null) "api-key:${server.apiKeyFile}";
  # Inside the image the runner needs no sandbox of its own, and could not have one here.
  runner = [
    "${served.engine.runtimePackage.command}/bin/enginix"
    "runner"
    "${served.engine}"
  ]
  ++ commandWords { kv-cache-fraction = served.settings.kvCacheFraction or null; };
  # The engine's own server does not notify systemd: `enginix ready` does when the server has
  # answered.
  ownServer = [
    enginix
    "ready"
    "http://${local server.host server.httpPort}"
  ]
  ++ commandWords {
    timeout = server.startTimeout;
    api-key-credential = if server.apiKeyFile == null then null else "api-key";
  }
  ++ [ "--run" ]
  # In an image mkServe's command is not used; it refuses unknown settings all the same.
  ++ (if image != null then builtins.seq served.serve runner else [ (lib.getExe served.serve) ])
  ++ commandWords {
    inherit (server) host;
    port = server.httpPort;
  };
  hardening = import ./hardening.nix {
    inherit gpu;
    loopback = isLoopback server.host;
  };
in
{
  description =
    (if served.ownServer then "OpenAI server" else "Triton Inference Server")
    + " of enginix: ${name}";
  wantedBy = [ "multi-user.target" ];
  after = [ "network.target" ];
  # The old server is stopped where the new one is about to start, not before the whole activation.
  stopIfChanged = false;

  environment = {
    HOME = "%C/enginix-${name}";
    XDG_CACHE_HOME = "%C/enginix-${name}";
  }
  // lib.optionalAttrs (image != null) row.environment
  // lib.optionalAttrs (served.ownServer && gpu) {
    CUDA_VISIBLE_DEVICES = list;
    # By index as nvidia-smi counts; CUDA's own order is by speed.
    CUDA_DEVICE_ORDER = "PCI_BUS_ID";
  }
  # systemd expands specifiers in these, too.
  // builtins.mapAttrs (_: builtins.replaceStrings [ "%" ] [ "%%" ]) server.environment;

  serviceConfig = {
    Type = "notify";
    NotifyAccess = if served.ownServer then "all" else "main";
    ExecStart = escape ((if served.ownServer then ownServer else triton) ++ server.extraArgs);
    Restart = "on-failure";
    RestartSec = 10;
    # `enginix serve` gives up first, with the reason; systemd's own limit only stops a hanging one.
    TimeoutStartSec = server.startTimeout + 60;
    # Triton's own time, then 10 s until `enginix serve` kills it, then tidying up.
    TimeoutStopSec = server.exitTimeout + 20;
    # SIGTERM to the main process only: the server's Python processes must live until their requests
    # are answered.
    KillMode = "mixed";
    LogExtraFields = [ "ENGINIX_SERVER=${name}" ];

    CacheDirectory = "enginix-${name}";
    RuntimeDirectory = "enginix-${name}";
    WorkingDirectory = "%t/enginix-${name}";
    LimitNOFILE = 65536;
  }
  // hardening
  // lib.optionalAttrs (!served.ownServer) (import ./final-failures.nix)
  # Kind rtx keeps the kernels that NVIDIA's runtime compiles on this machine.
  // lib.optionalAttrs (served.ownServer || served.kind == "rtx") {
    StateDirectory = "enginix-${name}";
  }
  // lib.optionalAttrs (preflight != [ ]) {
    ExecStartPre =
      if builtins.length preflight == 1 then
        escape (builtins.head preflight)
      else
        map escape preflight;
  }
  // lib.optionalAttrs (server.memoryMax != null) { MemoryMax = server.memoryMax; }
  // lib.optionalAttrs (server.tasksMax != null) { TasksMax = server.tasksMax; }
  // lib.optionalAttrs (credentials != [ ]) { LoadCredential = credentials; }
  // lib.optionalAttrs (image != null) {
    # The image is the root, read-only; the store beside it has the repository and this command.
    RootDirectory = image.root;
    MountAPIVFS = true;
    TemporaryFileSystem = hardening.TemporaryFileSystem ++ [
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
# An engine's own server tells by no exit status whether it would fail again.
// lib.optionalAttrs served.ownServer {
  startLimitIntervalSec = 600;
  startLimitBurst = 10;
}
