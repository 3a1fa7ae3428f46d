# Metrics: what Prometheus scrapes, what Grafana shows.
{ config, lib, ... }:
let
  cfg = config.services.enginix;
  # The engine's own server has no metrics port.
  ownServer = s: if s.ownServer != null then s.ownServer else (s.engine.kind or null) == "edgellm";
  servers = lib.filterAttrs (_: s: s.enable && !ownServer s) cfg.servers;
  # A wildcard address is reached over loopback.
  reached = {
    "0.0.0.0" = "127.0.0.1";
    "::" = "::1";
  };
  target =
    s:
    let
      host = reached.${s.host} or s.host;
    in
    "${if lib.hasInfix ":" host then "[${host}]" else host}:${toString s.metricsPort}";
in
{
  config = lib.mkIf cfg.enable {
    services.prometheus.scrapeConfigs = lib.mkIf (cfg.prometheus.enable && servers != { }) [
      {
        job_name = "enginix";
        static_configs = lib.mapAttrsToList (name: s: {
          targets = [ (target s) ];
          labels.server = name;
        }) servers;
      }
    ];
    services.grafana.provision.dashboards.settings.providers = lib.mkIf cfg.grafana.enable [
      {
        name = "enginix";
        options.path = ./dashboard;
      }
    ];
  };
}
