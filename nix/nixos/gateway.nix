# The gateway's description and its service. Keys reach it as systemd credentials; the description holds their names.
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
  behind = lib.mapAttrs (_: s: s // { served = served s; }) servers;
  models = service.models gateway behind;
  isLoopback = host: host == "127.0.0.1" || host == "::1";
  known = lib.attrNames models;
  named = lib.concatLists (lib.attrValues gateway.models);
  absent = lib.filter (name: !(servers ? ${name})) named;
  elsewhere =
    lib.filter (name: !lib.elem name known)
      (lib.concatMap (c: c.models) (lib.attrValues gateway.clients) ++ lib.attrValues gateway.aliases);
  keyFiles = lib.optional (gateway.keyFile != null) gateway.keyFile ++ map (c: c.keyFile) (lib.attrValues gateway.clients);
  asked = if gateway.models == { } then lib.attrNames servers else lib.filter (name: servers ? ${name}) named;
  # NVIDIA's models of these kinds tell neither why an answer ended nor its tokens as OpenAI's interface has them.
  mute = lib.filter (
    name:
    let
      what = behind.${name}.served;
    in
    !what.ownServer && what.kind != "reference"
  ) asked;
  inStore = lib.filter (lib.hasPrefix builtins.storeDir) keyFiles;
in
{
  config = lib.mkIf cfg.enable {
    assertions = lib.optionals gateway.enable [
      {
        assertion = known != [ ];
        message = "services.enginix.gateway: there is no server to stand before; enable one, or leave the gateway off.";
      }
      {
        assertion = mute == [ ];
        message = "services.enginix.gateway: ${lib.concatStringsSep ", " mute} is served by Triton, whose models of this kind the gateway cannot pass on faithfully; set ownServer, or name other servers in gateway.models.";
      }
      {
        assertion = absent == [ ];
        message = "services.enginix.gateway.models: ${lib.concatStringsSep ", " absent} is no server of services.enginix.servers; there are ${lib.concatStringsSep ", " (lib.attrNames servers)}.";
      }
      {
        assertion = elsewhere == [ ];
        message = "services.enginix.gateway: clients or aliases name the model ${lib.concatStringsSep ", " elsewhere}, which is none; there are ${lib.concatStringsSep ", " known}.";
      }
      {
        assertion = !isLoopback gateway.host -> keyFiles != [ ];
        message = "services.enginix.gateway: host is ${gateway.host}, which others reach, and there is no key; set keyFile or clients, or leave host on loopback.";
      }
      {
        assertion = gateway.openFirewall -> !isLoopback gateway.host;
        message = "services.enginix.gateway: openFirewall is on, but host is ${gateway.host}, which nobody outside reaches; set host, or leave the firewall closed.";
      }
      {
        assertion = inStore == [ ];
        message = "services.enginix.gateway: ${lib.concatStringsSep ", " inStore} is in the store, where everybody reads it; pass a path outside of it.";
      }
    ];
    networking.firewall.allowedTCPPorts = lib.optional (gateway.enable && gateway.openFirewall) gateway.port;
    systemd.services = lib.optionalAttrs gateway.enable {
      enginix-gateway = service.unit "gateway" gateway behind (
        parts.mkGateway (service.arguments gateway models)
      );
    };
  };
}
