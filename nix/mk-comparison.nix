# mkComparison :: { engines, … } -> derivation
#
# Engines, checkpoints and models beside each other: compare.html (one file, no network) and
# compare.json.
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
  # No torch: it reads manifests, evidence and headers, no weights.
  enginix = import ./package.nix scope {
    name = "enginix-compare-${enginix-core.version}";
    folders = [
      "cli/comparison"
      "data/conversion"
      "data/judgement"
      "data/machine"
      "data/memory_plan"
      "data/models"
      "data/report"
      "hub"
      "inspect"
      "kinds/registry"
      "machine"
      "model"
      "report"
    ];
    inherit (enginix-core) python;
  };
  build =
    {
      # Outputs of mkEngine, of every kind; of mkCheckpoint, mkQuantized and mkHfModel.
      engines,
      # Measured tokens a second:
      # { on = "machine, tool, load"; tokensPerSecond = { NAME = 123.4; }; }
      speed ? null,
      name ? "comparison",
    }:
    let
      speeds = check.arguments.only "${function}: speed" [ "on" "tokensPerSecond" ] speed;
    in
    if !builtins.isList engines || engines == [ ] then
      throw "${function}: engines must be a list of at least one artefact."
    else
      pkgs.stdenvNoCC.mkDerivation {
        inherit name;
        buildCommandPath = ./builders/comparison.sh;
        nativeBuildInputs = [ enginix ];
        engines = map (engine: "${engine}") engines;
        speed = if speed == null then "" else builtins.toJSON speeds;
        # The page refers to neither weights nor engines, so that both can be collected.
        allowedReferences = [ ];
        passthru = { inherit engines; };
        meta = artefactMeta { } {
          description = "Comparison of ${toString (builtins.length engines)} artefacts";
        };
      };
in
check.arguments.call function build
