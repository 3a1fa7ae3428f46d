# The gateway's options -> its description and its systemd service. Plain functions, as service.nix has them.
{ lib, escape }:
let
  # A credential's name is what the description calls a key's file.
  credentials =
    gateway: servers:
    lib.optional (gateway.keyFile != null) "operator:${gateway.keyFile}"
    ++ lib.mapAttrsToList (name: c: "client-${name}:${c.keyFile}") gateway.clients
    ++ builtins.concatLists (
      lib.mapAttrsToList (
        name: s: lib.optional (s.apiKeyFile != null) "server-${name}:${s.apiKeyFile}"
      ) servers
    );
  reached = {
    "0.0.0.0" = "127.0.0.1";
    "::" = "::1";
  };
  address =
    host:
    let
      at = reached.${host} or host;
    in
    if builtins.match ".*:.*" at != null then "[${at}]" else at;
  # A server as mkGateway takes it.
  backend =
    name: s:
    let
      inherit (s.served) ownServer;
      url = "http://${address s.host}:${toString s.httpPort}";
    in
    {
      kind = if ownServer then "openai" else "triton";
      url = if ownServer then "${url}/v1" else url;
      model = if ownServer then s.served.engine.modelName else "ensemble";
    }
    // lib.optionalAttrs (ownServer && s.apiKeyFile != null) { keyFile = "server-${name}"; };
in
{
  # Model -> servers; one that is none is an assertion of gateway.nix.
  models =
    gateway: servers:
    if gateway.models == { } then
      builtins.mapAttrs (name: s: [ (backend name s) ]) servers
    else
      builtins.mapAttrs (
        _: names: map (name: backend name servers.${name}) (builtins.filter (name: servers ? ${name}) names)
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
    // lib.optionalAttrs (gateway.keyFile != null) { keyFile = "operator"; };

  # The service of what mkGateway made of them.
  unit = id: gateway: servers: door: {
    description = "OpenAI gateway of enginix: ${id}";
    wantedBy = [ "multi-user.target" ];
    after = [ "network.target" ] ++ map (name: "enginix-${name}.service") (builtins.attrNames servers);
    stopIfChanged = false;
    environment = {
      HOME = "%t/enginix-${id}";
      XDG_CACHE_HOME = "%t/enginix-${id}";
    };
    serviceConfig = {
      Type = "notify";
      NotifyAccess = "main";
      ExecStart = escape [ (lib.getExe door) ];
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
    // import ./hardening.nix {
      loopback = gateway.host == "127.0.0.1" || gateway.host == "::1";
    }
    // lib.optionalAttrs (credentials gateway servers != [ ]) { LoadCredential = credentials gateway servers; };
  };
}
