# The rules that span options; each message has the values that break its rule.
{ config, lib, ... }:
let
  cfg = config.services.enginix;
  served = import ./served.nix {
    inherit lib;
    parts = cfg.scope;
  };
  select = import ./servers.nix { inherit lib; } cfg;
  servers = select.enabled;
  # The other servers lack a source, which an assertion below reports.
  names = lib.attrNames (lib.filterAttrs (_: select.hasSource) servers);
  runtimes = (lib.importJSON ../../python/enginix/data/runtime/runtimes.json).runtimes;
  defaults = (lib.importJSON ../../python/enginix/data/memory_plan/memory_constants.json).defaults;
  option = name: "services.enginix.servers.${name}";
  inherit (import ../check/address.nix) isLoopback;
  inherit (import ../check/secrets.nix { inherit lib; }) inStore;

  # Resource -> its users, for resources of two or more users.
  sharedResources =
    uses:
    lib.filterAttrs (_: users: lib.length users > 1) (
      lib.groupBy (use: toString use.resource) uses
    );

  # The engine's own server has one port only.
  portsOf =
    s:
    [ "httpPort" ]
    ++ lib.optionals (!(served s).ownServer) [
      "grpcPort"
      "metricsPort"
    ];
  ports =
    lib.concatMap (
      name:
      map (port: {
        label = "${name}.${port}";
        resource = servers.${name}.${port};
      }) (portsOf servers.${name})
    ) names
    ++ lib.optional cfg.gateway.enable {
      label = "gateway.port";
      resource = cfg.gateway.port;
    };
  sharedPorts = sharedResources ports;

  gpuUses = lib.concatMap (
    name: map (resource: { inherit name resource; }) (lib.unique servers.${name}.gpus)
  ) names;
  sharedGpus = sharedResources gpuUses;
  sharedWithoutConsent = lib.filterAttrs (
    _: users: !lib.all (u: servers.${u.name}.shareGpus) users
  ) sharedGpus;

  # MiB of a server by its option or the memory plan of its engine; the pool of the key-value cache
  # is the whole rest of a GPU.
  memoryOf =
    s:
    let
      plan = (served s).engine.request.plan or null;
    in
    if s.memory != null then
      s.memory
    else if plan == null then
      null
    else
      (plan.weights + plan.workspace + plan.pool) / 1048576;
  gpuMemoryOf =
    users:
    let
      targets = map (u: (served servers.${u.name}).engine.gpu or { }) users;
      knownTargets = lib.filter (gpu: gpu.memoryMiB or null != null) targets;
    in
    if knownTargets == [ ] then null else (lib.head knownTargets).memoryMiB;
  overcommittedGpus = lib.filterAttrs (
    _: users:
    let
      available = gpuMemoryOf users;
      amounts = map (u: memoryOf servers.${u.name}) users;
    in
    available != null && !lib.elem null amounts && lib.foldl' (a: b: a + b) 0 amounts > available
  ) sharedGpus;

  # Resource -> users -> sentence.
  describe = sentence: resources: lib.concatStringsSep "; " (lib.mapAttrsToList sentence resources);
  amountsOf = lib.concatMapStringsSep " and " (
    u: "${u.name} takes ${toString (memoryOf servers.${u.name})}"
  );

  ownServerOrTriton =
    what: row:
    what.ownServer || !what.inImage || row == null || row.paths.triton or null != null;

  perServer =
    name:
    let
      s = servers.${name};
      what = served s;
      inherit (what) runtime onCpu kind;
      row = what.engine.runtimePackage.row or runtimes.${runtime} or null;
      parallel = what.engine.parallel or { };
      gpusPerNode = parallel.gpusPerNode or defaults.gpusPerNode.value;
      worldSize = if onCpu then 0 else what.ranks;
      serverProgram = if what.ownServer then "trtllm-serve" else "Triton";
      gpuCount = toString (lib.length s.gpus);
      targetMemory = what.engine.gpu.memoryMiB or null;
    in
    # The other rules need exactly one of engine and repo.
    if !select.hasSource s then
      [
        {
          assertion = false;
          message =
            "${option name}: "
            + (
              if s.engine == null then
                "neither engine nor repo is set"
              else
                "engine and repo are both set"
            )
            + "; set one: engine, or mkTritonRepo's output for it.";
        }
      ]
    else
      [
        {
          assertion = s.openai == null;
          message =
            "${option name}.openai was removed; put services.enginix.gateway (mkGateway) before "
            + "the server, or serve the engine with ownServer, which has OpenAI's interface.";
        }
        {
          assertion = s.repo != null -> what.settings == { };
          message =
            "${option name}: settings are for an engine, and repo is built already; pass "
            + lib.concatStringsSep ", " (lib.attrNames what.settings)
            + " to mkTritonRepo, or set engine.";
        }
        {
          assertion = what.ownServer -> s.engine != null && what.hasOwnServer;
          message =
            "${option name}: ownServer is on, but "
            + (
              if s.engine == null then
                "repo is served by Triton; set engine"
              else
                "an engine of kind ${kind} has no server of its own"
            )
            + ", or leave ownServer out.";
        }
        {
          assertion = !what.hasTriton -> what.ownServer;
          message =
            "${option name}: an engine of kind ${kind} has no Triton repository; leave ownServer "
            + "on.";
        }
        {
          assertion = s.apiKeyFile != null -> what.ownServer && what.serverTakesKey;
          message =
            "${option name}: apiKeyFile is set, but ${serverProgram} asks for no key; put "
            + "services.enginix.gateway before it, with its keys.";
        }
        {
          assertion = !inStore s.apiKeyFile;
          message =
            "${option name}: apiKeyFile is in the store, where everybody reads it; pass a path "
            + "outside of it.";
        }
        {
          assertion =
            what.ownServer && what.serverTakesKey && !isLoopback s.host -> s.apiKeyFile != null;
          message =
            "${option name}: host is ${s.host}, which others reach, and there is no key; set "
            + "apiKeyFile, or leave host on loopback.";
        }
        {
          assertion = select.isName name;
          message =
            "${option name}: a server's name is part of a unit's and a user's name; use up to 32 "
            + "of a-z, 0-9, _ and -.";
        }
        {
          assertion = name != "gateway" && !lib.hasPrefix "trial-" name;
          message =
            "${option name}: the name is that of another unit of this module (gateway, "
            + "trial-<name>); choose another.";
        }
        {
          # Edge-LLM's server has a key, with its own assertion.
          assertion =
            isLoopback s.host || s.openWithoutKey || what.ownServer && what.serverTakesKey;
          message =
            "${option name}: host is ${s.host}, which others reach, and ${serverProgram} asks for "
            + "no key; leave host on loopback with services.enginix.gateway before it, or set "
            + "openWithoutKey if everybody who reaches it may use it.";
        }
        {
          assertion = row != null;
          message =
            "${option name}: it needs the runtime ${runtime}, which is unknown; known are "
            + "${lib.concatStringsSep ", " (lib.attrNames runtimes)}.";
        }
        {
          assertion = s.openFirewall -> !isLoopback s.host;
          message =
            "${option name}: openFirewall is on, but host is ${s.host}, which is unreachable from "
            + "outside; set host, or leave the firewall closed.";
        }
        {
          assertion = lib.length s.gpus == worldSize;
          message =
            if onCpu then
              "${option name}: gpus names ${gpuCount}, but the repository runs on the CPU; leave "
              + "gpus out, or build it with device = \"cuda\"."
            else
              "${option name}: gpus names ${gpuCount}, but the engine has ${toString worldSize} "
              + "rank${lib.optionalString (worldSize != 1) "s"} (tensor parallel "
              + "${toString (parallel.tensorParallel or 1)} × pipeline parallel "
              + "${toString (parallel.pipelineParallel or 1)}); name one GPU a rank.";
        }
        {
          assertion = what.spansMachines -> worldSize <= gpusPerNode;
          message =
            "${option name}: the engine's ${toString worldSize} ranks are for machines of "
            + "${toString gpusPerNode} GPUs: on one, TensorRT-LLM would run several on a GPU; "
            + "serve it on several (docs/how-to/kubernetes.md), or build it of mkCheckpoint { gpusPerNode "
            + "= ${toString worldSize}; … }.";
        }
        {
          # Servers that share a GPU are counted together below.
          assertion = s.memory == null || targetMemory == null || s.memory <= targetMemory;
          message =
            "${option name}: memory is ${toString s.memory} MiB, but a "
            + "${what.engine.gpu.name or "GPU of the engine's target"} has "
            + "${toString targetMemory}.";
        }
        {
          assertion = lib.allUnique (map toString s.gpus);
          message =
            "${option name}: gpus names a GPU twice: "
            + "${lib.concatMapStringsSep ", " toString s.gpus}.";
        }
        {
          assertion =
            s.gpus == [ ]
            || cfg.driverVersion == null
            || row.driver or null == null
            || lib.versionAtLeast cfg.driverVersion row.driver;
          message =
            "${option name}: runtime ${runtime} needs driver ${toString (row.driver or null)} or "
            + "later (CUDA ${toString (row.cuda or null)}), this machine has "
            + "${toString cfg.driverVersion}; set hardware.nvidia.package to a newer one, or use "
            + "an engine of an older runtime.";
        }
        {
          assertion = ownServerOrTriton what row;
          message =
            "${option name}: the image of runtime ${runtime} has no Triton; set ownServer = true, "
            + "which serves the engine with trtllm-serve, or build it for a runtime of "
            + "Triton's images.";
        }
        {
          assertion = !what.inImage || what.image != null;
          message =
            "${option name}: a repository of kind ${kind} is served inside its runtime's image, "
            + "which this one does not name; pass mkTritonRepo's output itself.";
        }
      ];
  # Where the assertion on open addresses was waived.
  openServers = lib.filterAttrs (
    _: s:
    select.hasSource s
    && s.openWithoutKey
    && !isLoopback s.host
    && !((served s).ownServer && (served s).serverTakesKey)
  ) servers;
in
{
  config = lib.mkIf cfg.enable {
    warnings = lib.mapAttrsToList (
      name: s:
      "${option name}: everybody who reaches ${s.host} uses this server, without a key and without "
      + "TLS (openWithoutKey). services.enginix.gateway asks for keys."
    ) openServers;
    assertions = lib.concatMap perServer (lib.attrNames servers) ++ [
      {
        assertion = sharedPorts == { };
        message =
          "services.enginix.servers: "
          + describe (
            port: users: "${lib.concatMapStringsSep " and " (u: u.label) users} are both ${port}"
          ) sharedPorts
          + "; give each its own port.";
      }
      {
        assertion = sharedWithoutConsent == { };
        message =
          "services.enginix.servers: "
          + describe (
            gpu: users: "${lib.concatMapStringsSep " and " (u: u.name) users} use GPU ${gpu}"
          ) sharedWithoutConsent
          + "; give each its own, or set shareGpus on all of them.";
      }
      {
        assertion = overcommittedGpus == { };
        message =
          "services.enginix.servers: "
          + describe (
            gpu: users: "GPU ${gpu} has ${toString (gpuMemoryOf users)} MiB, but ${amountsOf users}"
          ) overcommittedGpus
          + "; lower their key-value caches (parameters.kv_cache_free_gpu_mem_fraction of "
          + "mkTritonRepo, and memory here), or use another GPU.";
      }
    ];
  };
}
