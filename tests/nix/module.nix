# The NixOS module over nixpkgs' real lib, with stubs for the few options of NixOS that it sets.
{
  lib,
  # Options of services.enginix; `repos` below are at hand as arguments.
  settings,
  # Further configuration, for instance of Prometheus.
  more ? { },
}:
let
  # The flake, for the module's package defaults.
  self.legacyPackages.x86_64-linux = {
    enginix = package "enginix";
    tritonserver = package "tritonserver";
  };
  package = name: {
    type = "derivation";
    inherit name;
    outPath = "/nix/store/00000000000000000000000000000000-${name}";
    meta.mainProgram = name;
  };
  # What the module reads of mkTritonRepo's output.
  tiny = package "tiny-triton-repo" // {
    kind = "reference";
    runtime = "reference";
  };
  tensorrt =
    tensorParallel:
    package "big-triton-repo"
    // {
      kind = "tensorrt";
      runtime = "trtllm-1.2.1";
      engine = {
        parallel = {
          inherit tensorParallel;
          pipelineParallel = 1;
        };
        runtimePackage = {
          id = "trtllm-1.2.1";
          rootfs = package "trtllm-1.2.1-rootfs";
        };
        gpu = {
          name = "h200";
          memoryMiB = 143771;
        };
        request.plan = {
          weights = 60 * 1024 * 1048576;
          workspace = 4 * 1024 * 1048576;
          pool = 64 * 1024 * 1048576;
          tokens = 1000;
        };
      };
    };
  any = lib.mkOption { type = lib.types.unspecified; };
  stubs = {
    options = {
      assertions = lib.mkOption { type = lib.types.listOf lib.types.unspecified; };
      networking.firewall.allowedTCPPorts = lib.mkOption { type = lib.types.listOf lib.types.port; };
      nix.settings.system-features = lib.mkOption { type = lib.types.listOf lib.types.str; };
      programs.nix-required-mounts = any;
      services.grafana.provision.dashboards.settings.providers = any;
      services.prometheus.scrapeConfigs = lib.mkOption {
        type = lib.types.listOf lib.types.attrs;
        default = [ ];
      };
      systemd.services = lib.mkOption { type = lib.types.attrsOf lib.types.unspecified; };
      system.preSwitchChecks = lib.mkOption { type = lib.types.attrsOf lib.types.str; };
    };
    config.nix.settings.system-features = lib.mkDefault [ "kvm" ];
  };
  evaluated = lib.evalModules {
    class = "nixos";
    modules = [
      (import ../../nix/nixos self)
      stubs
      { services.enginix = { enable = true; } // (if lib.isFunction settings then settings { inherit tiny tensorrt; } else settings); }
      more
    ];
    specialArgs = {
      pkgs = {
        stdenv.hostPlatform.system = "x86_64-linux";
        runCommand = name: _: _: package name;
      };
      utils.escapeSystemdExecArgs = import ./escape.nix;
    };
  };
  inherit (evaluated) config;
in
{
  failing = map (a: a.message) (builtins.filter (a: !a.assertion) config.assertions);
  ports = config.networking.firewall.allowedTCPPorts;
  services = config.systemd.services;
  scraped = config.services.prometheus.scrapeConfigs;
  dashboards = map (p: p.name) config.services.grafana.provision.dashboards.settings.providers;
  mounts = config.programs.nix-required-mounts;
  features = config.nix.settings.system-features;
  checks = config.system.preSwitchChecks;
}
