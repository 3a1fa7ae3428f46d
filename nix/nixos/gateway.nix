# The gateway's description and its service. Keys reach it as systemd credentials; the description holds their names.
self:
{
  config,
  lib,
  pkgs,
  utils,
  ...
}:
let
  cfg = config.services.enginix;
  inherit (cfg) gateway;
  parts = self.legacyPackages.${pkgs.stdenv.hostPlatform.system};
  served = import ./served.nix { inherit lib parts; };
  servers = lib.filterAttrs (_: s: s.enable && (s.engine != null) != (s.repo != null)) cfg.servers;
  service = import ./gateway-service.nix {
    inherit lib;
    escape = utils.escapeSystemdExecArgs;
  };
  description = service.description gateway (lib.mapAttrs (_: s: s // { served = served s; }) servers);
  isLoopback = host: host == "127.0.0.1" || host == "::1";
  known = lib.attrNames description.models;
  named = lib.concatLists (lib.attrValues gateway.models);
  absent = lib.filter (name: !(servers ? ${name})) named;
  elsewhere =
    lib.filter (name: !lib.elem name known)
      (lib.concatMap (c: c.models) (lib.attrValues gateway.clients) ++ lib.attrValues gateway.aliases);
  keyFiles = lib.optional (gateway.keyFile != null) gateway.keyFile ++ map (c: c.keyFile) (lib.attrValues gateway.clients);
  inStore = lib.filter (lib.hasPrefix builtins.storeDir) keyFiles;
in
{
  config = lib.mkIf (cfg.enable && gateway.enable) {
    assertions = [
      {
        assertion = known != [ ];
        message = "services.enginix.gateway: there is no server to stand before; enable one, or leave the gateway off.";
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
    networking.firewall.allowedTCPPorts = lib.optional gateway.openFirewall gateway.port;
    systemd.services.enginix-gateway = service.unit gateway servers (
      pkgs.writeText "enginix-gateway.json" (builtins.toJSON description)
    );
  };
}
