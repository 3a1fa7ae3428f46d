# Restrictions of a service: all that a model server works with
# (docs/reference/nixos-module.md, "The unit").
{
  # Whether the service has GPUs.
  gpu ? false,
  # Whether the service talks to this machine only.
  loopback ? true,
}:
{
  DynamicUser = true;
  UMask = "0077";

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
  # Triton's Python backend talks through /dev/shm and makes its files readable for everybody, so
  # the service has one of its own. systemd's size is 10 % of the memory, the kernel's half of it;
  # `%` is no specifier there.
  # What NVIDIA's libraries use of System V IPC was not tried, so PrivateIPC stays off.
  TemporaryFileSystem = [ "/dev/shm:mode=1777,size=50%" ];
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

  # Without a GPU, only pseudo devices. With one, /dev is the machine's, and only NVIDIA's classes
  # open.
  DevicePolicy = "closed";
  PrivateDevices = !gpu;
}
// (
  if gpu then
    {
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
  else
    { }
)
// (
  if loopback then
    {
      IPAddressDeny = "any";
      IPAddressAllow = "localhost";
    }
  else
    { }
)
