# The systemd unit. Readiness is `enginix serve`'s: it notifies after the first generation succeeded.
{
  config,
  lib,
  utils,
  ...
}:
let
  cfg = config.services.enginix;
in
{
  config = lib.mkIf cfg.enable {
    networking.firewall.allowedTCPPorts = lib.mkIf cfg.openFirewall [
      cfg.httpPort
      cfg.grpcPort
    ];

    systemd.services.enginix = {
      description = "Triton Inference Server (enginix)";
      wantedBy = [ "multi-user.target" ];
      after = [ "network.target" ];
      environment = {
        HOME = "%C/enginix";
        XDG_CACHE_HOME = "%C/enginix";
      };
      serviceConfig = {
        Type = "notify";
        NotifyAccess = "main";
        # systemd's quoting, not a shell's: `%` and `$` mean something to it.
        ExecStart = utils.escapeSystemdExecArgs [
          (lib.getExe cfg.package)
          "serve"
          "${cfg.repo}"
          "--tritonserver"
          "${cfg.tritonserver}"
          "--host"
          cfg.host
          "--http-port"
          (toString cfg.httpPort)
          "--grpc-port"
          (toString cfg.grpcPort)
          "--metrics-port"
          (toString cfg.metricsPort)
        ];
        Restart = "on-failure";
        RestartSec = 10;
        TimeoutStartSec = cfg.startTimeout;
        TimeoutStopSec = cfg.stopTimeout;
        KillMode = "mixed";
        DynamicUser = true;
        CacheDirectory = "enginix";
        RuntimeDirectory = "enginix";
        WorkingDirectory = "%t/enginix";

        CapabilityBoundingSet = [ "" ];
        LockPersonality = true;
        NoNewPrivileges = true;
        PrivateTmp = true;
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
        RestrictAddressFamilies = [
          "AF_INET"
          "AF_INET6"
          "AF_UNIX"
        ];
        RestrictNamespaces = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        SystemCallArchitectures = "native";
        SystemCallFilter = [
          "@system-service @resources"
          "~@privileged"
        ];
        UMask = "0077";

        # The reference kind runs on CPU: no device but the pseudo ones. Triton's Python backend needs
        # /dev/shm, so IPC stays shared.
        DevicePolicy = "closed";
        PrivateDevices = true;
        PrivateUsers = true;
        MemoryDenyWriteExecute = false; # torch and libffi map executable memory
      };
    };
  };
}
