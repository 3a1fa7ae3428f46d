# mkComparison :: { engines, … } -> derivation
#
# Engines, checkpoints and models beside each other: compare.html (one file, no network) and compare.json.
{
  lib,
  pkgs,
  check,
  enginix-core,
  ...
}@scope:
let
  artefactMeta = import ./artefact-meta.nix { inherit lib; };
  function = "mkComparison";
  # No torch: manifests, evidence and headers are read, no weight.
  enginix = import ./package.nix scope {
    name = "enginix-compare-${enginix-core.version}";
    folders = [
      "cli/comparison"
      "data/conversion"
      "data/judgement"
      "data/memory_plan"
      "data/models"
      "data/report"
      "hub"
      "inspect"
      "model"
      "report"
    ];
    inherit (enginix-core) python;
  };
  build =
    {
      # Outputs of mkEngine, of every kind; of mkCheckpoint, mkQuantized and mkHfModel.
      engines,
      # Tokens a second as somebody measured them: { on = "machine, tool, load"; tokensPerSecond = { NAME = 123.4; }; }
      speed ? null,
      name ? "comparison",
    }:
    let
      speeds = check.arguments.only "${function}: speed" [ "on" "tokensPerSecond" ] speed;
    in
    if !builtins.isList engines || engines == [ ] then
      throw "${function}: engines is a list of what is compared, at least one."
    else
      pkgs.stdenvNoCC.mkDerivation {
        inherit name;
        buildCommandPath = ./builders/comparison.sh;
        nativeBuildInputs = [ enginix ];
        engines = map (engine: "${engine}") engines;
        speed = if speed == null then "" else builtins.toJSON speeds;
        # A page: neither weights nor engines are kept for it.
        allowedReferences = [ ];
        passthru = { inherit engines; };
        meta = artefactMeta { } { description = "Comparison of ${toString (builtins.length engines)} artefacts"; };
      };
in
args: build (check.arguments.only function [ "engines" "speed" "name" ] args)
