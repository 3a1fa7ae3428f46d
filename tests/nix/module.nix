# The NixOS module over nixpkgs' real lib and NixOS' own option types (tests/nixpkgs/nixos.nix).
{
  lib,
  # Options of services.enginix; `repos` below are at hand as arguments.
  settings,
  # Further configuration, for instance of Prometheus.
  more ? { },
}:
let
  nixos = import ../nixpkgs/nixos.nix { inherit lib; };
  # The module's functions and packages: the project's own over the stand-in package set.
  parts = import ../../nix {
    pkgs = import ../hostpkgs {
      system = "x86_64-linux";
      inherit lib;
    };
  };
  scope = parts // {
    enginix = package "enginix";
    tritonserver = package "tritonserver";
    # Its path tells what it was given.
    mkGateway =
      args:
      let
        one = model: s: "${model}=${s.kind} ${s.url} ${s.model} ${s.keyFile or "no key"}";
        given = lib.concatLists (lib.mapAttrsToList (model: map (one model)) args.servers);
      in
      package "gateway of ${lib.concatStringsSep "; " given}" // { meta.mainProgram = "gateway"; };
    mkServe = args: package "${args.engine.modelName}-serve" // { meta.mainProgram = "serve"; inherit args; };
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
      modelName = "big";
      engine = package "big-engine" // {
        model = package "big-model";
        parallel = {
          inherit tensorParallel;
          pipelineParallel = 1;
        };
        runtimePackage = {
          command = package "enginix-engine-command";
          id = "trtllm-1.2.1";
          rootfs = package "trtllm-1.2.1-rootfs";
          rootfsFor = _: package "trtllm-1.2.1-rootfs";
          inherit (parts.mkRuntime { id = "trtllm-1.2.1"; }) row image;
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
  # Engines, as mkEngine's output has them.
  engine =
    kind:
    package "big-engine"
    // (tensorrt 1).engine
    // {
      inherit kind;
      modelName = "big";
      runtime = if kind == "edgellm" then "edgellm-0.11.0" else "trtllm-1.2.1";
      request = (tensorrt 1).engine.request // {
        limits.maxBatchSize = 16;
      };
    };
  reference = parts.catalogue.tiny-qwen3.engine;
  evaluated = nixos.evaluate {
    modules = [
      ../../nix/nixos
      {
        services.enginix = {
          enable = true;
          scope = lib.mkDefault scope;
        }
        // (if lib.isFunction settings then settings { inherit tiny tensorrt engine reference; } else settings);
        # The default of a machine without more.
        nix.settings.system-features = lib.mkOverride 900 [ "kvm" ];
      }
      more
    ];
    pkgs = {
      stdenv.hostPlatform.system = "x86_64-linux";
      runCommand = name: _: _: package name;
      writeText = name: text: builtins.toFile name (builtins.unsafeDiscardStringContext text);
    }
    // lib.genAttrs [ "coreutils" "findutils" "gnugrep" "gnused" "systemd" ] package;
  };
  inherit (evaluated) config;
in
{
  inherit (evaluated) failing warnings units preSwitch;
  ports = config.networking.firewall.allowedTCPPorts;
  # NixOS gives the limits of starts no default.
  services = lib.mapAttrs (
    _: lib.filterAttrs (name: value: !lib.hasPrefix "startLimit" name || (builtins.tryEval value).success)
  ) config.systemd.services;
  # What a server serves, with what it was given.
  served = name: {
    exec = config.systemd.services."enginix-${name}".serviceConfig.ExecStart;
    inherit (config.systemd.services."enginix-${name}") environment;
  };
  scraped = config.services.prometheus.scrapeConfigs;
  dashboards = map (p: p.name) config.services.grafana.provision.dashboards.settings.providers;
  mounts = config.programs.nix-required-mounts;
  features = config.nix.settings.system-features;
  checks = config.system.preSwitchChecks;
}
