# The text of the unit that the module makes of one server, with plain Nix: no nixpkgs.
#
#   tests/hostpkgs/nix build --impure --expr 'import ./tests/nix/unit.nix { }' --no-link --print-out-paths
{
  # Options of services.enginix.servers.<name>; the rest are the module's defaults.
  name ? "tiny",
  settings ? { },
  # As image.nix makes it, of a repository that is served inside an image.
  image ? null,
  pkgs ? import ../hostpkgs { system = builtins.currentSystem; },
}:
let
  inherit (pkgs) lib;
  e = import ../../nix { inherit pkgs; };

  # nix/nixos/options.nix read for its defaults: a type is nothing here, an option is what was passed to mkOption.
  stub = {
    mkOption = option: option;
    mkEnableOption = description: { inherit description; };
    literalExpression = text: text;
    types = {
      attrsOf = type: type;
      submodule = module: module;
      listOf = _: null;
      nullOr = _: null;
      either = _: _: null;
      bool = null;
      package = null;
      port = null;
      str = null;
      ints = {
        positive = null;
        unsigned = null;
        between = _: _: null;
      };
    };
  };
  module = import ../../nix/nixos/options.nix { legacyPackages.${pkgs.system} = e; } {
    config.services.enginix = { inherit (e) enginix tritonserver; package = e.enginix; };
    lib = stub;
    pkgs.stdenv.hostPlatform.system = pkgs.system;
  };
  inherit (module.options.services.enginix.servers.type) options;
  defaults = builtins.mapAttrs (_: o: o.default) (lib.filterAttrs (_: o: o ? default) options);

  server = defaults // { repo = e.catalogue.tiny-qwen3.triton-repo; } // settings;
  service = import ../../nix/nixos/service.nix {
    inherit lib;
    escape = import ./escape.nix;
  } name server image;

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
    ${lib.concatLines (map (u: "After=${u}") service.after)}
    [Service]
    ${lib.concatLines (lib.mapAttrsToList (k: v: "Environment=\"${k}=${v}\"") service.environment)}${lines service.serviceConfig}
    [Install]
    ${lib.concatLines (map (u: "WantedBy=${u}") service.wantedBy)}'';
in
pkgs.runCommand "enginix-${name}.service" {
  inherit text;
  passAsFile = [ "text" ];
  passthru = { inherit service; };
} "cp $textPath $out"
