# The gateway's description and its service. Keys reach it as systemd credentials; the description
# holds their names.
{
  config,
  lib,
  utils,
  ...
}:
let
  cfg = config.services.enginix;
  inherit (cfg) gateway;
  parts = cfg.scope;
  served = import ./served.nix { inherit lib parts; };
  servers = (import ./servers.nix { inherit lib; } cfg).complete;
  service = import ./gateway-service.nix {
    inherit lib;
    escape = utils.escapeSystemdExecArgs;
  };
  inherit (import ../check/address.nix) isLoopback;
  inherit (import ../check/secrets.nix { inherit lib; }) inStore;
  backends = lib.mapAttrs (_: s: s // { served = served s; }) servers;
  models = service.models gateway backends;
  modelNames = lib.attrNames models;
  listed = lib.concatStringsSep ", ";

  namedServers = lib.concatLists (lib.attrValues gateway.models);
  unknownServers = lib.filter (name: !(servers ? ${name})) namedServers;
  namedModels =
    lib.concatMap (c: c.models) (lib.attrValues gateway.clients) ++ lib.attrValues gateway.aliases;
  unknownModels = lib.filter (name: !lib.elem name modelNames) namedModels;

  # NVIDIA's models of the kinds tensorrt and llmapi report neither why an answer ended nor its
  # tokens as OpenAI's interface has them.
  isUnsupported =
    name:
    let
      what = backends.${name}.served;
    in
    !what.ownServer && !what.ownModels;
  usedServers =
    if gateway.models == { } then
      lib.attrNames servers
    else
      lib.filter (name: servers ? ${name}) namedServers;
  unsupportedServers = lib.filter isUnsupported usedServers;

  keyFiles =
    lib.optional (gateway.keyFile != null) gateway.keyFile
    ++ map (c: c.keyFile) (lib.attrValues gateway.clients);
  keyFilesInStore = lib.filter inStore (
    keyFiles ++ lib.optional (gateway.metricsKeyFile != null) gateway.metricsKeyFile
  );
in
{
  config = lib.mkIf cfg.enable {
    assertions = lib.optionals gateway.enable [
      {
        assertion = modelNames != [ ];
        message =
          "services.enginix.gateway: no servers are enabled; enable one, or leave the gateway off.";
      }
      {
        assertion = unsupportedServers == [ ];
        message =
          "services.enginix.gateway: ${listed unsupportedServers} is served by Triton, whose "
          + "models of this kind the gateway cannot pass on faithfully; set ownServer, or name "
          + "other servers in gateway.models.";
      }
      {
        assertion = unknownServers == [ ];
        message =
          "services.enginix.gateway.models: ${listed unknownServers} is no server of "
          + "services.enginix.servers; there are ${listed (lib.attrNames servers)}.";
      }
      {
        assertion = unknownModels == [ ];
        message =
          "services.enginix.gateway: unknown model ${listed unknownModels} in clients or aliases; "
          + "there are ${listed modelNames}.";
      }
      {
        assertion = !isLoopback gateway.host -> keyFiles != [ ];
        message =
          "services.enginix.gateway: host is ${gateway.host}, which others reach, and there is no "
          + "key; set keyFile or clients, or leave host on loopback.";
      }
      {
        assertion = gateway.metricsKeyFile != null -> keyFiles != [ ];
        message =
          "services.enginix.gateway: metricsKeyFile is set, but no key lets requests in; set "
          + "keyFile or clients, too.";
      }
      {
        assertion = gateway.openFirewall -> !isLoopback gateway.host;
        message =
          "services.enginix.gateway: openFirewall is on, but host is ${gateway.host}, which is "
          + "unreachable from outside; set host, or leave the firewall closed.";
      }
      {
        assertion = keyFilesInStore == [ ];
        message =
          "services.enginix.gateway: ${listed keyFilesInStore} is in the store, where everybody "
          + "reads it; pass a path outside of it.";
      }
    ];
    networking.firewall.allowedTCPPorts = lib.optional (
      gateway.enable && gateway.openFirewall
    ) gateway.port;
    systemd.services = lib.optionalAttrs gateway.enable {
      enginix-gateway = service.unit "gateway" gateway backends (
        parts.mkGateway (service.arguments gateway models)
      );
    };
  };
}
