# Every rule that spans options, each with the values that break it in its message.
{ config, lib, ... }:
let
  cfg = config.services.enginix;
  ports = {
    inherit (cfg) httpPort grpcPort metricsPort;
  };
  sharing = port: lib.attrNames (lib.filterAttrs (_: p: p == port) ports);
in
{
  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = lib.allUnique (lib.attrValues ports);
        message = "services.enginix: ${lib.concatStringsSep " and " (sharing cfg.httpPort ++ lib.optionals (cfg.httpPort != cfg.grpcPort) (sharing cfg.grpcPort))} share a port; give each its own.";
      }
      {
        assertion = cfg.openFirewall -> cfg.host != "127.0.0.1" && cfg.host != "::1";
        message = "services.enginix: openFirewall is on, but host is ${cfg.host}, which nobody outside reaches; set host, or leave the firewall closed.";
      }
      {
        assertion = (cfg.repo.runtime or "reference") == "reference";
        message = "services.enginix: the repository needs the runtime ${cfg.repo.runtime or "?"}, which this module does not start yet; a repository of the reference kind runs.";
      }
    ];
  };
}
