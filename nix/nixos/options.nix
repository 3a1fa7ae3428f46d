# Types and documentation only; the other files give them meaning.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    literalExpression
    literalMD
    mkEnableOption
    mkOption
    mkPackageOption
    types
    ;
  shared = config.services.enginix;

  server = import ./server-options.nix { inherit lib shared; };
in
{
  options.services.enginix = {
    enable = mkEnableOption "servers of enginix models";

    scope = mkOption {
      type = types.raw;
      default = import ../. { inherit pkgs; };
      defaultText = literalExpression "enginix.lib.mkLib pkgs";
      example = literalExpression "enginix.legacyPackages.\${pkgs.stdenv.hostPlatform.system}";
      description = ''
        The functions and packages of enginix, which make repositories, servers and gateways. By
        default they use this machine's own `pkgs`, with its overlays, `nixpkgs.config` and version
        of nixpkgs. The example takes the nixpkgs that enginix is locked to;
        `(enginix.lib.mkLib pkgs).override { … }` replaces a part.
      '';
    };

    package = mkPackageOption shared.scope "enginix" {
      pkgsText = "config.services.enginix.scope";
      extraDescription = "It is the command that starts servers.";
    };

    tritonserver = mkPackageOption shared.scope "tritonserver" {
      pkgsText = "config.services.enginix.scope";
      extraDescription = "It serves reference repositories.";
    };

    servers = mkOption {
      type = types.attrsOf (types.submodule server);
      default = { };
      example = literalExpression ''
        {
          tiny.engine = enginix.packages.''${system}.tiny-qwen3-engine;
        }
      '';
      description = "Servers by name; each is the service `enginix-<name>`.";
    };

    gateway = import ./gateway-options.nix { inherit lib; };

    driverVersion = mkOption {
      type = types.nullOr types.str;
      default =
        if config.hardware.nvidia.enabled or false then
          config.hardware.nvidia.package.version
        else
          null;
      defaultText = literalMD (
        "the version of `config.hardware.nvidia.package`, where `hardware.nvidia.enabled` is set"
      );
      example = "590.44.01";
      description =
        "GPU driver's version, compared with each runtime's minimum; null does not compare.";
    };

    prometheus.enable = mkEnableOption (
      "the scrape of the gateway, of every Triton server, and of trtllm-serve for engines of kind "
      + "llmapi with `llmArgs.return_perf_metrics`, by this machine's Prometheus "
      + "(`services.prometheus`); a warning names the servers that have no metrics"
    );

    grafana.enable = mkEnableOption (
      "a dashboard of the servers in this machine's Grafana (`services.grafana`)"
    );

    gpuBuilder = {
      enable = mkEnableOption (
        "builds of engines on this machine: Nix builds that require `cuda` see the GPU inside the "
        + "sandbox (`programs.nix-required-mounts`, nixpkgs 26.05 or later), and "
        + "`nix.settings.system-features` holds the features that `mkEngine` requires beside "
        + "NixOS' own"
      );

      sms = mkOption {
        type = types.listOf types.ints.positive;
        default = [ ];
        example = [ 90 ];
        description =
          "SM versions of this machine's GPUs; engines for other versions are not built here.";
      };
    };
  };
}
