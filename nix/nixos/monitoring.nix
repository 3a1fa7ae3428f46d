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
  measured = lib.filterAttrs (_: s: !(served s).ownServer) complete;
  # The frontend's are closed by its key, whose file is not Prometheus' to read.
  isClosed = s: (served s).frontend && s.openai.keyFile != null;
  servers = lib.filterAttrs (_: s: !isClosed s) measured;
  closed = lib.attrNames (lib.filterAttrs (_: isClosed) measured);
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
    "${if lib.hasInfix ":" host then "[${host}]" else host}:${toString (if (served s).frontend then s.openai.port else s.metricsPort)}";
in
{
  config = lib.mkIf cfg.enable {
    warnings =
      lib.optional (cfg.prometheus.enable && own != [ ]) (
        "services.enginix.prometheus: ${lib.concatStringsSep ", " own} not scraped: an engine's own "
        + "server has no metrics for Prometheus; leave ownServer out where Triton can serve the engine, "
        + "or take its load from the gateway's log."
      )
      ++ lib.optional (cfg.prometheus.enable && closed != [ ]) "services.enginix.prometheus: ${lib.concatStringsSep ", " closed} not scraped: Triton's OpenAI frontend tells its metrics to who has openai.keyFile's key; leave the key out, with services.enginix.gateway and its keys before it, or write a scrape of your own with authorization.credentials_file.";
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
