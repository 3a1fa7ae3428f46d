# mkPinned :: { directory } -> { <name>-model, <name>-checkpoint, <name>-engine, … }
#
# The packages of every model that `enginix pin` has pinned in a directory, named as the
# catalogue's: a flake's `packages` are `mkPinned { directory = ./.; }`.
{ lib, check, ... }@scope:
let
  function = "mkPinned";
  stagesOf = import ./catalogue/stages.nix scope;
  build =
    {
      # A path of the flake: NAME.lock.json, NAME.engine.json and RUNTIME.pin.json in it are read.
      directory,
    }:
    let
      isAbsolute = builtins.isString directory && lib.hasPrefix "/" directory;
      pinned =
        if builtins.isPath directory || directory ? outPath || isAbsolute then
          import ./catalogue/pinned.nix scope directory
        else
          throw "${function}: directory is ${check.arguments.describe directory}, not a path.";
      models = builtins.mapAttrs stagesOf (pinned.ofCatalogue // pinned.others);
    in
    if models == { } then
      throw (
        "${function}: no model is pinned in ${toString directory}. Run: "
        + "nix run github:enginix/enginix#pin -- OWNER/NAME, then git add what it writes."
      )
    else
      builtins.foldl' (
        all: name:
        all // lib.mapAttrs' (stage: lib.nameValuePair "${name}-${stage}") models.${name}
      ) { } (builtins.attrNames models);
in
check.arguments.call function build
