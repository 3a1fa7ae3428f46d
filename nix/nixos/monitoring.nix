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
  servers = lib.filterAttrs (_: s: !(served s).ownServer) complete;
  ownServers = lib.filterAttrs (_: s: (served s).ownServer) complete;
  # trtllm-serve has metrics if the LLM class measures its requests.
  hasMetrics =
    s: (served s).kind == "llmapi" && (s.engine.request.llmArgs.return_perf_metrics or false);
  measuredServers = lib.filterAttrs (_: hasMetrics) ownServers;
  silentServers = lib.attrNames (lib.filterAttrs (_: s: !hasMetrics s) ownServers);

  inherit (cfg) gateway;
  gatewayHasKeys = gateway.keyFile != null || gateway.clients != { };
  scrapesGateway = gateway.enable && (!gatewayHasKeys || gateway.metricsKeyFile != null);
  targets =
    portOf: named:
    lib.mapAttrsToList (name: s: {
      targets = [ (local s.host (portOf s)) ];
      labels.server = name;
    }) named;
in
{
  config = lib.mkIf cfg.enable {
    warnings = lib.optionals cfg.prometheus.enable (
      lib.optional (silentServers != [ ]) (
        "services.enginix.prometheus: ${lib.concatStringsSep ", " silentServers} not scraped: of the "
        + "engines' own servers, trtllm-serve alone has metrics for Prometheus, for an engine of kind "
        + "llmapi with llmArgs.return_perf_metrics = true. The gateway counts what passes it."
      )
      ++ lib.optional (gateway.enable && !scrapesGateway) (
        "services.enginix.prometheus: the gateway is not scraped: it asks for a key; set "
        + "gateway.metricsKeyFile."
      )
    );
    services.prometheus = lib.mkIf cfg.prometheus.enable {
      scrapeConfigs =
        lib.optional (servers != { }) {
          job_name = "enginix";
          static_configs = targets (s: s.metricsPort) servers;
        }
        ++ lib.optional (measuredServers != { }) {
          job_name = "enginix-trtllm-serve";
          metrics_path = "/prometheus/metrics";
          static_configs = targets (s: s.httpPort) measuredServers;
        }
        ++ lib.optional scrapesGateway (
          {
            job_name = "enginix-gateway";
            static_configs = [ { targets = [ (local gateway.host gateway.port) ]; } ];
          }
          // lib.optionalAttrs gatewayHasKeys {
            authorization.credentials_file = gateway.metricsKeyFile;
          }
        );
      # The check at build does not see a file of a key.
      checkConfig = lib.mkIf (scrapesGateway && gatewayHasKeys) (lib.mkDefault "syntax-only");
    };
    services.grafana.provision.dashboards.settings.providers = lib.mkIf cfg.grafana.enable [
      {
        name = "enginix";
        options.path = ./dashboard;
      }
    ];
  };
}
