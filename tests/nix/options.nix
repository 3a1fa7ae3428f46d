# docs/reference/nixos-options.md, from the module's own option files, with plain Nix.
#
#   tests/hostpkgs/nix eval --impure --raw --expr 'import ./tests/nix/options.nix' >docs/reference/nixos-options.md
let
  lib = import ../hostpkgs/lib.nix;
  # Types by the names that people read; an option is what was passed to mkOption.
  stub = {
    mkOption = option: option // { _option = true; };
    mkEnableOption = what: {
      _option = true;
      type = "bool";
      default = false;
      description = "Whether to enable ${what}.";
    };
    # As nixpkgs words it.
    mkPackageOption =
      _: name:
      { pkgsText, extraDescription }:
      {
        _option = true;
        type = "package";
        defaultText.text = "${pkgsText}.${name}";
        description = "The ${name} package to use. ${extraDescription}";
      };
    literalExpression = text: { inherit text; };
    literalMD = markdown: { inherit markdown; };
    types = {
      bool = "bool";
      anything = "anything";
      raw = "anything";
      int = "int";
      float = "float";
      str = "text";
      package = "package";
      path = "path";
      port = "port";
      oneOf = builtins.concatStringsSep " or ";
      either = a: b: "${a} or ${b}";
      enum = values: "one of ${builtins.concatStringsSep ", " values}";
      listOf = type: "list of ${type}";
      nullOr = type: "null or ${type}";
      attrsOf = type: if builtins.isString type then "set of ${type}" else { inherit type; };
      submodule = module: module;
      ints = {
        positive = "number above 0";
        unsigned = "number from 0";
        between = from: to: "number from ${toString from} to ${toString to}";
      };
    };
  };
  module =
    import ../../nix/nixos/options.nix {
      config.services.enginix.scope = builtins.throw "a default is not shown";
      lib = stub;
      pkgs = builtins.throw "a default is not shown";
    };

  value = v: if v ? text then v.text else builtins.toJSON v;
  words = text: builtins.concatStringsSep " " (builtins.filter (w: builtins.isString w && w != "") (builtins.split "[ \n]+" text));
  # An option in two lines: what it takes, and what it is for.
  row =
    name: o: type:
    let
      default =
        if o ? defaultText.markdown then
          o.defaultText.markdown
        else if o ? defaultText then
          "`${value o.defaultText}`"
        else if o ? default && type != "" && !(o.type ? options) then
          "`${value o.default}`"
        else
          null;
    in
    "- **`${name}`**: ${type}${lib.optionalString (default != null) "; default: ${default}"}\n"
    + "  <br>${words o.description}"
    + lib.optionalString (o ? example) " Example: `${words (value o.example)}`";
  rows =
    prefix: options:
    builtins.concatLists (
      lib.mapAttrsToList (
        key: o:
        let
          name = "${prefix}${key}";
        in
        if !(o ? _option) then
          rows "${name}." o
        else if builtins.isString o.type then
          [ (row name o o.type) ]
        else if o.type ? options then
          [ (row name o "options") ] ++ rows "${name}." o.type.options
        else
          [ (row name o "set of options") ] ++ rows "${name}.<name>." o.type.type.options
      ) (lib.filterAttrs (_: o: o.visible or true) options)
    );
in
''
  # Options of services.enginix

  Made from the module by tests/nix/options.nix; a test says when it is stale. What they are for: [Run servers on NixOS](../how-to/nixos.md).

''
+ lib.concatLines (rows "" module.options.services.enginix)
