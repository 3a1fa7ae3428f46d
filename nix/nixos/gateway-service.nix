# The gateway's options -> its description and its systemd service. Plain functions, as service.nix has them.
{ lib, escape }:
let
  # The key that a server itself asks for.
  keyOf = s: if s.served.frontend then s.openai.keyFile else s.apiKeyFile;
  # A credential's name is what the description calls a key's file.
  credentials =
    gateway: servers:
    lib.optional (gateway.keyFile != null) "operator:${gateway.keyFile}"
    ++ lib.mapAttrsToList (name: c: "client-${name}:${c.keyFile}") gateway.clients
    ++ builtins.concatLists (
      lib.mapAttrsToList (
        name: s: lib.optional (keyOf s != null) "server-${name}:${keyOf s}"
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
      inherit (s.served) ownServer frontend;
      openai = ownServer || frontend;
      url = "http://${address s.host}:${toString (if frontend then s.openai.port else s.httpPort)}";
    in
    {
      kind = if openai then "openai" else "triton";
      url = if openai then "${url}/v1" else url;
      model = if ownServer then s.served.engine.modelName else "ensemble";
    }
    // lib.optionalAttrs (openai && keyOf s != null) { keyFile = "server-${name}"; };
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

  # The options of a gateway before one server alone.
  single = name: s: {
    inherit (s) host;
    inherit (s.openai) port keyFile;
    models.${name} = [ name ];
    clients = { };
    aliases = { };
    fallbacks = { };
    maxParallelRequests = 0;
  };

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
