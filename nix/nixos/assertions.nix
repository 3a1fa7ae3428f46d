# Every rule that spans options, each with the values that break it in its message.
{ config, lib, ... }:
let
  cfg = config.services.enginix;
  served = import ./served.nix {
    inherit lib;
    parts = cfg.scope;
  };
  select = import ./servers.nix { inherit lib; } cfg;
  servers = select.enabled;
  # Of others assertions below say what is missing.
  names = lib.attrNames (lib.filterAttrs (_: select.hasSource) servers);
  runtimes = (lib.importJSON ../../python/enginix/data/runtime/runtimes.json).runtimes;
  defaults = (lib.importJSON ../../python/enginix/data/memory_plan/memory_constants.json).defaults;
  option = name: "services.enginix.servers.${name}";
  isLoopback = host: host == "127.0.0.1" || host == "::1";

  # Every (server, what it takes) once; those that take the same thing stand together.
  takers = select: lib.concatMap (name: map (thing: { inherit name thing; }) (select name servers.${name})) names;
  collisions = list: lib.filterAttrs (_: v: lib.length v > 1) (lib.groupBy (t: toString t.thing) list);

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
        thing = servers.${name}.${port};
      }) (portsOf servers.${name})
    ) names
    ++ lib.optional cfg.gateway.enable {
      label = "gateway.port";
      thing = cfg.gateway.port;
    };
  sharedPorts = collisions ports;

  gpus = collisions (takers (_: s: lib.unique s.gpus));
  unasked = lib.filterAttrs (_: users: !lib.all (u: servers.${u.name}.shareGpus) users) gpus;
  who = users: lib.concatMapStringsSep " and " (u: u.name) users;

  # What the plan of an engine counts, in MiB; the pool of the key-value cache is the whole rest of a GPU.
  memory =
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
  total =
    users:
    let
      known = lib.filter (gpu: gpu.memoryMiB or null != null) (map (u: (served servers.${u.name}).engine.gpu or { }) users);
    in
    if known == [ ] then null else (lib.head known).memoryMiB;
  crowded = lib.filterAttrs (
    _: users:
    let
      parts = map (u: memory servers.${u.name}) users;
    in
    total users != null && !lib.elem null parts && lib.foldl' (a: b: a + b) 0 parts > total users
  ) gpus;

  perServer =
    name:
    let
      s = servers.${name};
      what = served s;
      inherit (what) runtime onCpu kind;
      row = runtimes.${runtime} or null;
      parallel = what.engine.parallel or { };
      gpusPerNode = parallel.gpusPerNode or defaults.gpusPerNode.value;
      worldSize = if onCpu then 0 else what.ranks;
    in
    # Nothing else can be said of a server that serves nothing, or two things.
    if !select.hasSource s then
      [
        {
          assertion = false;
          message = "${option name}: ${
            if s.engine == null then "neither engine nor repo is set" else "engine and repo are both set"
          }; set one: engine, or what mkTritonRepo made of it.";
        }
      ]
    else
    [
      {
        assertion = s.openai == null;
        message =
          "${option name}.openai was removed; put services.enginix.gateway (mkGateway) before the server, or serve "
          + "the engine with ownServer, which has OpenAI's interface.";
      }
      {
        assertion = s.repo != null -> what.settings == { };
        message = "${option name}: settings are for an engine, and repo is built already; pass ${lib.concatStringsSep ", " (lib.attrNames what.settings)} to mkTritonRepo, or set engine.";
      }
      {
        assertion = what.ownServer -> s.engine != null && what.hasOwnServer;
        message = "${option name}: ownServer is on, but ${
          if s.engine == null then "repo is served by Triton; set engine" else "an engine of kind ${kind} has no server of its own"
        }, or leave ownServer out.";
      }
      {
        assertion = kind == "edgellm" -> what.ownServer;
        message = "${option name}: an engine of kind edgellm has no Triton repository; leave ownServer on.";
      }
      {
        assertion = s.apiKeyFile != null -> what.ownServer && kind == "edgellm";
        message = "${option name}: apiKeyFile is set, but ${
          if what.ownServer then "trtllm-serve" else "Triton"
        } asks for no key; put services.enginix.gateway before it, with its keys.";
      }
      {
        assertion = s.apiKeyFile != null -> !lib.hasPrefix builtins.storeDir s.apiKeyFile;
        message = "${option name}: apiKeyFile is in the store, where everybody reads it; pass a path outside of it.";
      }
      {
        assertion = what.ownServer && kind == "edgellm" && !isLoopback s.host -> s.apiKeyFile != null;
        message = "${option name}: host is ${s.host}, which others reach, and there is no key; set apiKeyFile, or leave host on loopback.";
      }
      {
        assertion = select.isName name;
        message = "${option name}: a server's name is part of a unit's and a user's name; use up to 32 of a-z, 0-9, _ and -.";
      }
      {
        assertion = name != "gateway" && !lib.hasPrefix "trial-" name;
        message = "${option name}: the name is that of another unit of this module (gateway, trial-<name>); choose another.";
      }
      {
        # Edge-LLM's server has a key, with its own assertion.
        assertion = isLoopback s.host || s.openWithoutKey || what.ownServer && kind == "edgellm";
        message =
          "${option name}: host is ${s.host}, which others reach, and "
          + (if what.ownServer then "trtllm-serve" else "Triton")
          + " asks for no key; leave host on loopback with services.enginix.gateway before it, or set "
          + "openWithoutKey if everybody who reaches it may use it.";
      }
      {
        assertion = row != null;
        message = "${option name}: it needs the runtime ${runtime}, which is unknown; known are ${lib.concatStringsSep ", " (lib.attrNames runtimes)}.";
      }
      {
        assertion = s.openFirewall -> !isLoopback s.host;
        message = "${option name}: openFirewall is on, but host is ${s.host}, which nobody outside reaches; set host, or leave the firewall closed.";
      }
      {
        assertion = lib.length s.gpus == worldSize;
        message =
          if onCpu then
            "${option name}: gpus names ${toString (lib.length s.gpus)}, but the repository runs on the CPU; leave gpus out, or build it with device = \"cuda\"."
          else
            "${option name}: gpus names ${toString (lib.length s.gpus)}, but the engine has ${toString worldSize} rank${lib.optionalString (worldSize != 1) "s"} (tensor parallel ${toString (parallel.tensorParallel or 1)} × pipeline parallel ${toString (parallel.pipelineParallel or 1)}); name one GPU a rank.";
      }
      {
        assertion = what.spansMachines -> worldSize <= gpusPerNode;
        message = "${option name}: the engine's ${toString worldSize} ranks are for machines of ${toString gpusPerNode} GPUs: on one, TensorRT-LLM would run several on a GPU; serve it on several (docs/how-to/kubernetes.md), or build it of mkCheckpoint { gpusPerNode = ${toString worldSize}; … }.";
      }
      {
        # Several on one GPU are counted together below.
        assertion = s.memory == null || (what.engine.gpu.memoryMiB or null) == null || s.memory <= what.engine.gpu.memoryMiB;
        message = "${option name}: memory is ${toString s.memory} MiB, but a ${what.engine.gpu.name or "GPU of the engine's target"} has ${toString (what.engine.gpu.memoryMiB or null)}.";
      }
      {
        assertion = lib.allUnique (map toString s.gpus);
        message = "${option name}: gpus names a GPU twice: ${lib.concatMapStringsSep ", " toString s.gpus}.";
      }
      {
        assertion =
          s.gpus == [ ]
          || cfg.driverVersion == null
          || row.driver or null == null
          || lib.versionAtLeast cfg.driverVersion row.driver;
        message = "${option name}: runtime ${runtime} needs driver ${toString (row.driver or null)} or later (CUDA ${toString (row.cuda or null)}), this machine has ${toString cfg.driverVersion}; set hardware.nvidia.package to a newer one, or use an engine of an older runtime.";
      }
      {
        assertion = !what.inImage || what.image != null;
        message = "${option name}: a repository of kind ${kind} is served inside its runtime's image, which this one does not name; pass mkTritonRepo's output itself.";
      }
    ];
in
{
  config = lib.mkIf cfg.enable {
    assertions = lib.concatMap perServer (lib.attrNames servers) ++ [
      {
        assertion = sharedPorts == { };
        message = "services.enginix.servers: ${
          lib.concatStringsSep "; " (
            lib.mapAttrsToList (port: users: "${lib.concatMapStringsSep " and " (u: u.label) users} are both ${port}") sharedPorts
          )
        }; give each its own port.";
      }
      {
        assertion = unasked == { };
        message = "services.enginix.servers: ${
          lib.concatStringsSep "; " (lib.mapAttrsToList (gpu: users: "${who users} use GPU ${gpu}") unasked)
        }; give each its own, or set shareGpus on all of them.";
      }
      {
        assertion = crowded == { };
        message = "services.enginix.servers: ${
          lib.concatStringsSep "; " (
            lib.mapAttrsToList (
              gpu: users:
              "GPU ${gpu} has ${toString (total users)} MiB, but ${
                lib.concatMapStringsSep " and " (u: "${u.name} takes ${toString (memory servers.${u.name})}") users
              }"
            ) crowded
          )
        }; lower their key-value caches (parameters.kv_cache_free_gpu_mem_fraction of mkTritonRepo, and memory here), or use another GPU.";
      }
    ];
  };
}
