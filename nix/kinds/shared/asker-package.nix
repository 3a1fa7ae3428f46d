# The parts of the Python package that ask an engine, without the code that judges: a changed gate
# or bound asks no engine again.
#
# `ask` reads the material by the model's tokenizer; `tensorrt-llm` and `edgellm` ask an engine in
# its runtime.
{
  pkgs,
  python,
  enginix,
  edgellm-python,
  ...
}@scope:
part:
let
  common = [
    "evaluation/engine_protocol"
    "kinds/asking"
  ];
  parts = {
    ask = {
      python = enginix.python;
      folders = [
        "data/models"
        "data/questions"
        "evaluation/reference_answers"
        "model"
      ];
    };
    tensorrt-llm = {
      inherit python;
      folders = [
        "data/machine"
        "data/models"
        "data/runtime"
        "kinds/trtllm"
        "machine"
        "model"
        "runtime"
      ];
    };
    edgellm = {
      python = edgellm-python;
      folders = [
        "compatibility"
        "data/edgellm"
        "data/machine"
        "data/models"
        "kinds/edgellm"
        "machine"
        "model"
      ];
    };
  };
in
import ../../package.nix scope {
  name = "enginix-${part}-asks";
  folders = common ++ parts.${part}.folders;
  inherit (parts.${part}) python;
  builder = ../../builders/engine-package.sh;
  attributes = {
    main = "enginix.kinds.asking.asker_main";
    bubblewrap = pkgs.bubblewrap or "";
  };
}
