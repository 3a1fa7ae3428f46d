# Metrics: what Prometheus scrapes, what Grafana shows.
{ config, lib, ... }:
let
  cfg = config.services.enginix;
  served = import ./served.nix {
    inherit lib;
    parts = { };
  };
  inherit (import ./servers.nix { inherit lib; } cfg) complete;
  # The engine's own server has no metrics that Prometheus reads.
  own = lib.attrNames (lib.filterAttrs (_: s: (served s).ownServer) complete);
  servers = lib.filterAttrs (_: s: !(served s).ownServer) complete;
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
    warnings = lib.optional (cfg.prometheus.enable && own != [ ]) (
      "services.enginix.prometheus: ${lib.concatStringsSep ", " own} not scraped: an engine's own "
      + "server has no metrics for Prometheus; leave ownServer out where Triton can serve the engine, "
      + "or take its load from the gateway's log."
    );
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
