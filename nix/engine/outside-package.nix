# The parts of the Python package that ask an engine, and nothing that judges: a changed gate or bound asks none again.
#
# `ask` reads the material by the model's tokenizer; `tensorrt-llm` and `edgellm` ask an engine in its runtime.
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
    "__init__.py"
    "console.py"
    "credentials.py"
    "data/__init__.py"
    "errors.py"
    "files.py"
    "gates/__init__.py"
    "gates/outside_asked.py"
    "gates/outside_engine.py"
    "gates/outside_main.py"
    "manifest.py"
    "tables.py"
    "wording.py"
  ];
  parts = {
    ask = {
      python = enginix.python;
      kept = [
        "data/architectures.json"
        "data/gate_facts.json"
        "data/gate_prompts.json"
        "data/gate_text.json"
        "data/quantization.json"
        "gates/answers.py"
        "gates/asking.py"
        "gates/hf.py"
        "gates/material.py"
        "gates/outside_ask.py"
        "gates/prompts.py"
        "gates/recall.py"
        "gates/subject.py"
        "model"
      ];
    };
    tensorrt-llm = {
      inherit python;
      kept = [
        "data/environment.json"
        "data/failures.json"
        "data/gpus.json"
        "data/quantization_support.json"
        "data/runtimes.json"
        "engine/__init__.py"
        "engine/failures.py"
        "engine/preflight.py"
        "engine/target.py"
        "gates/outside_run.py"
        "gates/outside_trtllm.py"
        "process.py"
        "runtime"
      ];
    };
    edgellm = {
      python = edgellm-python;
      kept = [
        "data/architectures.json"
        "data/edgellm.json"
        "data/gpus.json"
        "data/quantization.json"
        "edgellm"
        "engine/__init__.py"
        "engine/check.py"
        "engine/target.py"
        "gates/outside_edgellm.py"
        "model"
        "optional_libraries.py"
        "process.py"
        "runtime/__init__.py"
        "runtime/driver.py"
      ];
    };
  };
in
import ../package.nix scope {
  name = "enginix-${part}-asks";
  kept = common ++ parts.${part}.kept;
  inherit (parts.${part}) python;
  builder = ../builders/engine-package.sh;
  attributes = {
    main = "enginix.gates.outside_main";
    bubblewrap = pkgs.bubblewrap or "";
  };
}
