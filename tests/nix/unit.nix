# The text of the unit that the module makes of one server, with plain Nix: no nixpkgs.
#
#   tests/hostpkgs/nix build --impure --expr 'import ./tests/nix/unit.nix { }' -o unit
{
  # Options of services.enginix.servers.<name>; the rest are the module's defaults.
  name ? "tiny",
  settings ? { },
  # As image.nix makes it, of a repository that is served inside an image.
  image ? null,
  # Options of services.enginix.gateway: the unit of the gateway before that server.
  gateway ? null,
  # mkServe, where the engine has its own server.
  parts ? e,
  e ? import ../../nix { inherit pkgs; },
  pkgs ? import ../hostpkgs { system = builtins.currentSystem; },
}:
let
  inherit (pkgs) lib;

  # The option files read for their defaults: a type is nothing here, an option is what was passed to mkOption.
  stub = {
    mkOption = option: option;
    mkEnableOption = _: { default = false; };
    literalExpression = text: text;
    literalMD = text: text;
    types = lib.genAttrs [ "anything" "bool" "int" "float" "str" "package" "path" "port" ] (_: null) // {
      oneOf = _: null;
      enum = _: null;
      listOf = _: null;
      attrsOf = _: null;
      nullOr = _: null;
      either = _: _: null;
      submodule = module: module;
      ints = {
        positive = null;
        unsigned = null;
        between = _: _: null;
      };
    };
  };
  defaultsOf =
    options:
    builtins.mapAttrs (_: o: if o ? default then o.default else defaultsOf o) (
      lib.filterAttrs (_: o: o ? default || !(o ? type)) options
    );
  shared = {
    package = e.enginix;
    inherit (e) tritonserver;
  };
  server =
    defaultsOf (import ../../nix/nixos/server-options.nix { lib = stub; inherit shared; }).options
    // lib.optionalAttrs (!(settings ? engine)) { repo = e.catalogue.tiny-qwen3.triton-repo; }
    // settings;
  escape = import ./escape.nix;
  served = import ../../nix/nixos/served.nix { inherit lib parts; } server;
  gatewayOptions = defaultsOf (import ../../nix/nixos/gateway-options.nix { lib = stub; }) // gateway;
  gatewayService = import ../../nix/nixos/gateway-service.nix { inherit lib escape; };
  behind = {
    ${name} = server // { inherit served; };
  };
  service =
    if gateway == null then
      import ../../nix/nixos/service.nix { inherit lib escape; } name server served image
    else
      gatewayService.unit "gateway" gatewayOptions behind (
        e.mkGateway (gatewayService.arguments gatewayOptions (gatewayService.models gatewayOptions behind))
      );

  # As NixOS renders units: booleans as true and false, a list as one line an entry.
  value = v: if builtins.isBool v then (if v then "true" else "false") else toString v;
  lines =
    set:
    lib.concatLines (
      builtins.concatLists (
        lib.mapAttrsToList (key: v: map (one: "${key}=${value one}") (if builtins.isList v then v else [ v ])) set
      )
    );
  text = ''
    [Unit]
    Description=${service.description}
    ${lib.concatLines (map (u: "After=${u}") service.after)}${
      lines (
        lib.optionalAttrs (service ? startLimitBurst) {
          StartLimitIntervalSec = service.startLimitIntervalSec;
          StartLimitBurst = service.startLimitBurst;
        }
      )
    }
    [Service]
    ${lib.concatLines (lib.mapAttrsToList (k: v: "Environment=\"${k}=${v}\"") service.environment)}${lines service.serviceConfig}
    [Install]
    ${lib.concatLines (map (u: "WantedBy=${u}") service.wantedBy)}'';
in
pkgs.runCommand "enginix-${if gateway == null then name else "gateway"}.service" {
  inherit text;
  passAsFile = [ "text" ];
  passthru = {
    inherit service;
    trial = pkgs.writeText "trial.conf" (import ../../nix/nixos/trial.nix { inherit lib escape; } name server served image);
  };
} "cp $textPath $out"
