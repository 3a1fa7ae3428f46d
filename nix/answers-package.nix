# The enginix command that asks a model, and nothing that judges: a change of a gate or its bounds
# asks no model again.
{ enginix, enginix-core, ... }@scope:
import ./package.nix scope {
  name = "enginix-answers-${enginix-core.version}";
  folders = [
    "cli/answers"
    "data/models"
    "data/questions"
    "evaluation/reference_answers"
    "model"
  ];
  inherit (enginix) python;
}
