# The enginix command over the Python that has TensorRT for RTX: only what builds this kind.
{ enginix-core, rtx-python, ... }@scope:
let
  folders = [
    "checkpoint"
    "cli/rtx"
    "data/judgement"
    "data/memory_plan"
    "data/models"
    "data/questions"
    "data/rtx"
    "evaluation/judgement"
    "evaluation/reference_answers"
    "kinds/rtx"
    "model"
    "reference"
    "report"
  ];
in
import ../../package.nix scope {
  name = "enginix-rtx-${enginix-core.version}";
  inherit folders;
  python = rtx-python;
}
