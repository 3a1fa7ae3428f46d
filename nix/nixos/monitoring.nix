# Metrics: the targets of Prometheus, the dashboard of Grafana.
{ config, lib, ... }:
let
  cfg = config.services.enginix;
  served = import ./served.nix {
    inherit lib;
    parts = { };
  };
  inherit (import ./servers.nix { inherit lib; } cfg) complete;
  inherit (import ../check/address.nix) local;
  # An engine's own server has no metrics that Prometheus reads.
  ownServers = lib.attrNames (lib.filterAttrs (_: s: (served s).ownServer) complete);
  servers = lib.filterAttrs (_: s: !(served s).ownServer) complete;
in
{
  config = lib.mkIf cfg.enable {
    warnings = lib.optional (cfg.prometheus.enable && ownServers != [ ]) (
      "services.enginix.prometheus: ${lib.concatStringsSep ", " ownServers} not scraped: an "
      + "engine's own server has no metrics for Prometheus; leave ownServer out where Triton can "
      + "serve the engine, or take its load from the gateway's log."
    );
    services.prometheus.scrapeConfigs = lib.mkIf (cfg.prometheus.enable && servers != { }) [
      {
        job_name = "enginix";
        static_configs = lib.mapAttrsToList (name: s: {
          targets = [ (local s.host s.metricsPort) ];
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
