# Types and documentation only; assertions.nix and unit.nix give them meaning.
self:
{
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types literalExpression;
in
{
  options.services.enginix = {
    enable = lib.mkEnableOption "a Triton server of an enginix model";

    package = mkOption {
      type = types.package;
      default = self.legacyPackages.${pkgs.stdenv.hostPlatform.system}.enginix;
      defaultText = literalExpression "enginix.legacyPackages.\${system}.enginix";
      description = "The enginix command that starts the server.";
    };

    tritonserver = mkOption {
      type = types.package;
      default = self.legacyPackages.${pkgs.stdenv.hostPlatform.system}.tritonserver;
      defaultText = literalExpression "enginix.legacyPackages.\${system}.tritonserver";
      description = "The tritonserver that serves the repository; it must be the runtime that the engine was built for.";
    };

    repo = mkOption {
      type = types.package;
      example = literalExpression "enginix.packages.\${system}.tiny-qwen3-triton-repo";
      description = "Model repository to serve, from `mkTritonRepo`.";
    };

    host = mkOption {
      type = types.str;
      default = "127.0.0.1";
      description = "Address of all three endpoints. Triton is no security boundary: put a gateway before it.";
    };

    httpPort = mkOption {
      type = types.port;
      default = 8000;
      description = "Port of the HTTP endpoint.";
    };

    grpcPort = mkOption {
      type = types.port;
      default = 8001;
      description = "Port of the gRPC endpoint.";
    };

    metricsPort = mkOption {
      type = types.port;
      default = 8002;
      description = "Port of the Prometheus metrics.";
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Whether to open the HTTP and gRPC ports in the firewall.";
    };

    startTimeout = mkOption {
      type = types.ints.positive;
      default = 600;
      description = "Seconds that loading the model and the first generation may take.";
    };

    stopTimeout = mkOption {
      type = types.ints.positive;
      default = 60;
      description = "Seconds that requests in flight may take after a stop was asked for.";
    };
  };
}
