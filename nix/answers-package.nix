# The enginix command that asks a model, without the code that judges: a changed gate or bound asks
# no model again.
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
