# NixOS' own option types, as far as services.enginix sets options: systemd's units with what NixOS
# puts into each, pre-switch checks in every form that nixpkgs has had, firewall, Prometheus,
# Grafana, required mounts.
#
# Facts: nixos/lib/{systemd-lib,systemd-unit-options,systemd-types,utils}.nix,
# nixos/modules/system/activation/pre-switch-check.nix, nixos/modules/services/monitoring of
# nixpkgs.
{ lib }:
let
  inherit (lib) mkOption types;

  # nixos/lib/utils.nix
  escapeSystemdExecArg =
    arg:
    let
      s =
        if builtins.isPath arg then
          "${arg}"
        else if builtins.isString arg then
          arg
        else if builtins.isInt arg || builtins.isFloat arg || lib.isDerivation arg then
          toString arg
        else
          throw "escapeSystemdExecArg only allows strings, paths, numbers and derivations";
    in
    lib.replaceStrings [ "%" "$" ] [ "%%" "$$" ] (builtins.toJSON s);
  utils = {
    inherit escapeSystemdExecArg;
    escapeSystemdExecArgs = lib.concatMapStringsSep " " escapeSystemdExecArg;
  };

  # nixos/lib/systemd-lib.nix and systemd-unit-options.nix
  unitName = types.strMatching "[a-zA-Z0-9@%:_.\\-]+[.](service|socket|device|mount|automount|swap|target|path|timer|scope|slice)";
  unitOption = lib.mkOptionType {
    name = "systemd option";
    merge =
      loc: definitions:
      let
        kept = lib.filterOverrides definitions;
      in
      if builtins.isList (builtins.head kept).value then
        lib.concatMap (
          d:
          if builtins.isList d.value then
            d.value
          else
            throw "The definitions for systemd unit options should be either all lists, representing repeatable options, or all non-lists, but for the option ${lib.showOption loc}, the definitions are a mix of list and non-list"
        ) kept
      else
        lib.mergeEqualOption loc kept;
  };
  isOneOf = name: values: attrs: !(attrs ? ${name}) || builtins.elem attrs.${name} values;
  checkService =
    attrs:
    isOneOf "Type" [
      "exec"
      "simple"
      "forking"
      "oneshot"
      "dbus"
      "notify"
      "notify-reload"
      "idle"
    ] attrs
    && isOneOf "Restart" [
      "no"
      "on-success"
      "on-failure"
      "on-abnormal"
      "on-abort"
      "always"
    ] attrs;
  units = mkOption {
    type = types.listOf unitName;
    default = [ ];
  };
  serviceOf =
    pkgs:
    types.submodule (
      { config, ... }:
      {
        options =
          lib.genAttrs [
            "after"
            "before"
            "bindsTo"
            "conflicts"
            "onFailure"
            "partOf"
            "requiredBy"
            "requires"
            "requisite"
            "wantedBy"
            "wants"
          ] (_: units)
          // {
            enable = mkOption {
              type = types.bool;
              default = true;
            };
            description = mkOption {
              type = types.singleLineStr;
              default = "";
            };
            documentation = mkOption {
              type = types.listOf types.str;
              default = [ ];
            };
            restartIfChanged = mkOption {
              type = types.bool;
              default = true;
            };
            stopIfChanged = mkOption {
              type = types.bool;
              default = true;
            };
            restartTriggers = mkOption {
              type = types.listOf types.unspecified;
              default = [ ];
            };
            unitConfig = mkOption {
              type = types.attrsOf unitOption;
              default = { };
            };
            startLimitBurst = mkOption { type = types.int; };
            startLimitIntervalSec = mkOption { type = types.int; };
            environment = mkOption {
              type =
                with types;
                attrsOf (
                  nullOr (oneOf [
                    str
                    path
                    package
                  ])
                );
              default = { };
            };
            path = mkOption {
              type =
                with types;
                listOf (oneOf [
                  package
                  str
                ]);
              default = [ ];
            };
            serviceConfig = mkOption {
              type = types.addCheck (types.attrsOf unitOption) checkService;
              default = { };
            };
          };
        # stage2ServiceConfig: every service has a default path, which is its PATH.
        config.path = lib.mkAfter [
          pkgs.coreutils
          pkgs.findutils
          pkgs.gnugrep
          pkgs.gnused
          pkgs.systemd
        ];
        config.environment.PATH = lib.mkIf (
          config.path != [ ]
        ) "${lib.makeBinPath config.path}:${lib.makeSearchPathOutput "bin" "sbin" config.path}";
      }
    );

  toOption =
    x:
    if x == true then
      "true"
    else if x == false then
      "false"
    else
      toString x;
  section =
    as:
    lib.concatStrings (
      lib.concatLists (
        lib.mapAttrsToList (
          name: value: map (x: "${name}=${toOption x}\n") (if builtins.isList value then value else [ value ])
        ) as
      )
    );
  # serviceToUnit
  unitText =
    globalEnvironment: def:
    let
      env = globalEnvironment // def.environment;
    in
    "[Unit]\nDescription=${def.description}\n"
    + lib.optionalString (def.after != [ ]) "After=${toString def.after}\n"
    + "\n[Service]\n"
    + lib.concatMapStrings (
      n: lib.optionalString (env.${n} != null) "Environment=${builtins.toJSON "${n}=${env.${n}}"}\n"
    ) (lib.attrNames env)
    + lib.optionalString (!def.stopIfChanged) "X-StopIfChanged=false\n"
    + section def.serviceConfig
    + lib.optionalString (def.wantedBy != [ ]) "\n[Install]\nWantedBy=${toString def.wantedBy}\n";

  # pre-switch-check.nix, oldest first: since 2024, since `$1` and `$2` are handed over, since June
  # 2026 (PR 527778).
  preSwitchForms = {
    plain = name: text: ''
      (
        ${text}
      )
      if [[ $? != 0 ]]; then
        echo "Pre-switch check '${name}' failed"
        exit 1
      fi
    '';
    condition = name: text: ''
      if ! (
        ${text}
      ) >&2 ; then
        echo "Pre-switch check '${name}' failed" >&2
        exit 1
      fi
    '';
    errexit = name: text: ''
      set +e
      (
        set -e
        ${text}
      ) >&2
      _rc=$?
      set -e
      if [ "$_rc" -ne 0 ]; then
        echo "Pre-switch check '${name}' failed" >&2
        exit 1
      fi
    '';
  };

  module =
    { config, pkgs, ... }:
    {
      _file = "nixos";
      options = {
        assertions = mkOption {
          type = types.listOf types.unspecified;
          default = [ ];
        };
        warnings = mkOption {
          type = types.listOf types.str;
          default = [ ];
        };
        environment.systemPackages = mkOption {
          type = types.listOf types.package;
          default = [ ];
        };
        networking.firewall.allowedTCPPorts = mkOption {
          type = types.listOf types.port;
          default = [ ];
          apply = ports: lib.unique (lib.sort builtins.lessThan ports);
        };
        systemd.globalEnvironment = mkOption {
          type = types.attrsOf types.str;
          default = { };
        };
        systemd.services = mkOption {
          type = types.attrsOf (serviceOf pkgs);
          default = { };
        };
        system.preSwitchChecks = mkOption {
          type = types.attrsOf types.str;
          default = { };
        };
        system.switch.enable = mkOption {
          type = types.bool;
          default = true;
        };
        nix.settings = mkOption {
          type = types.submodule {
            freeformType = types.attrsOf types.anything;
            options.system-features = mkOption {
              type = types.listOf types.str;
              default = [ ];
            };
          };
          default = { };
        };
        programs.nix-required-mounts = {
          enable = mkOption {
            type = types.bool;
            default = false;
          };
          presets.nvidia-gpu.enable = mkOption {
            type = types.bool;
            default = false;
          };
        };
        hardware.nvidia.enabled = mkOption {
          type = types.bool;
          readOnly = true;
          default = false;
        };
        hardware.nvidia.package = mkOption {
          type = types.unspecified;
        };
        services.prometheus.checkConfig = mkOption {
          type = types.either types.bool (types.enum [ "syntax-only" ]);
          default = true;
        };
        services.prometheus.scrapeConfigs = mkOption {
          default = [ ];
          type = types.listOf (
            types.submodule {
              options = {
                job_name = mkOption { type = types.str; };
                metrics_path = mkOption {
                  type = types.nullOr types.str;
                  default = null;
                };
                authorization = mkOption {
                  type = types.nullOr types.attrs;
                  default = null;
                };
                static_configs = mkOption {
                  default = [ ];
                  type = types.listOf (
                    types.submodule {
                      options = {
                        targets = mkOption { type = types.listOf types.str; };
                        labels = mkOption {
                          type = types.attrsOf types.str;
                          default = { };
                        };
                      };
                    }
                  );
                };
              };
            }
          );
        };
        services.grafana.provision.enable = mkOption {
          type = types.bool;
          default = false;
        };
        services.grafana.provision.dashboards.settings = mkOption {
          default = null;
          type = types.nullOr (
            types.submodule {
              options.providers = mkOption {
                default = [ ];
                type = types.listOf (
                  types.submodule {
                    freeformType = types.attrsOf types.anything;
                    options.name = mkOption {
                      type = types.str;
                      default = "default";
                    };
                    options.options.path = mkOption { type = types.path; };
                  }
                );
              };
            }
          );
        };
        # Of virtual machines in NixOS tests.
        virtualisation = mkOption {
          type = types.attrsOf types.anything;
          default = { };
        };
        specialisation = mkOption {
          type = types.attrsOf (
            types.submodule {
              options.configuration = mkOption { type = types.deferredModule; };
            }
          );
          default = { };
        };
      };
      # NixOS' own, at lower priority: any other definition drops them.
      config.nix.settings.system-features = lib.mkDefault [
        "nixos-test"
        "benchmark"
        "big-parallel"
        "kvm"
      ];
    };
in
{
  inherit utils module preSwitchForms;

  # As lib.nixosSystem: modules over these options, with what a reader of the result wants.
  evaluate =
    {
      pkgs,
      modules,
    }:
    let
      evaluated = lib.evalModules {
        class = "nixos";
        modules = [ module ] ++ modules;
        specialArgs = {
          inherit pkgs utils;
        };
      };
      inherit (evaluated) config;
    in
    {
      inherit evaluated config;
      inherit (config) warnings;
      failing = map (a: a.message) (builtins.filter (a: !a.assertion) config.assertions);
      units = lib.mapAttrs (_: unitText config.systemd.globalEnvironment) config.systemd.services;
      # form -> the whole script that a switch runs; "$1" is the new system, "$2" the action.
      preSwitch = lib.mapAttrs (
        _: form: lib.concatStrings (lib.mapAttrsToList form config.system.preSwitchChecks)
      ) preSwitchForms;
    };
}
