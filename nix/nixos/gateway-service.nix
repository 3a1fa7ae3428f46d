# The gateway's options -> its description and its systemd service. Plain functions, like those of
# service.nix.
{ lib, escape }:
let
  inherit (import ../check/address.nix) isLoopback local;
  # The description names a key's file by its credential.
  credentials =
    gateway: servers:
    lib.optional (gateway.keyFile != null) "operator:${gateway.keyFile}"
    ++ lib.optional (gateway.metricsKeyFile != null) "metrics:${gateway.metricsKeyFile}"
    ++ lib.mapAttrsToList (name: c: "client-${name}:${c.keyFile}") gateway.clients
    ++ builtins.concatLists (
      lib.mapAttrsToList (
        name: s: lib.optional (s.apiKeyFile != null) "server-${name}:${s.apiKeyFile}"
      ) servers
    );
  # A server as an argument of mkGateway.
  backend =
    name: s:
    let
      inherit (s.served) ownServer;
      url = "http://${local s.host s.httpPort}";
    in
    {
      kind = if ownServer then "openai" else "triton";
      url = if ownServer then "${url}/v1" else url;
      model = if ownServer then s.served.engine.modelName else "ensemble";
    }
    // lib.optionalAttrs (ownServer && s.apiKeyFile != null) { keyFile = "server-${name}"; };
in
{
  # Model -> servers; gateway.nix has an assertion against unknown servers.
  models =
    gateway: servers:
    if gateway.models == { } then
      builtins.mapAttrs (name: s: [ (backend name s) ]) servers
    else
      builtins.mapAttrs (
        _: names:
        map (name: backend name servers.${name}) (builtins.filter (name: servers ? ${name}) names)
      ) gateway.models;

  # Arguments of mkGateway.
  arguments =
    gateway: models:
    {
      servers = models;
      inherit (gateway) host;
      httpPort = gateway.port;
      clients = builtins.mapAttrs (name: c: {
        keyFile = "client-${name}";
        inherit (c)
          models
          requestsPerMinute
          tokensPerMinute
          parallelRequests
          ;
      }) gateway.clients;
      limits = { inherit (gateway) maxParallelRequests; };
      routing = { inherit (gateway) aliases fallbacks; };
    }
    // lib.optionalAttrs (gateway.keyFile != null) { keyFile = "operator"; }
    // lib.optionalAttrs (gateway.metricsKeyFile != null) { metricsKeyFile = "metrics"; };

  # The service of mkGateway's output.
  unit = id: gateway: servers: command: {
    description = "OpenAI gateway of enginix: ${id}";
    wantedBy = [ "multi-user.target" ];
    after = [
      "network.target"
    ]
    ++ map (name: "enginix-${name}.service") (builtins.attrNames servers);
    stopIfChanged = false;
    environment = {
      HOME = "%t/enginix-${id}";
      XDG_CACHE_HOME = "%t/enginix-${id}";
    };
    serviceConfig = {
      Type = "notify";
      NotifyAccess = "main";
      ExecStart = escape [ (lib.getExe command) ];
      Restart = "on-failure";
      RestartSec = 10;
      TimeoutStartSec = 660; # it waits 600 s for the servers behind it
      TimeoutStopSec = 50;
      KillMode = "mixed";
      LogExtraFields = [ "ENGINIX_SERVER=${id}" ];
      RuntimeDirectory = "enginix-${id}";
      WorkingDirectory = "%t/enginix-${id}";
      LimitNOFILE = 65536;
    }
    // import ./final-failures.nix
    // lib.optionalAttrs (gateway.memoryMax != null) { MemoryMax = gateway.memoryMax; }
    // lib.optionalAttrs (gateway.tasksMax != null) { TasksMax = gateway.tasksMax; }
    // import ./hardening.nix {
      loopback = isLoopback gateway.host;
    }
    // lib.optionalAttrs (credentials gateway servers != [ ]) {
      LoadCredential = credentials gateway servers;
    };
  };
}
