# The enginix command that asks a model, and nothing that judges: a change of a gate or its bounds asks no model again.
{ enginix, enginix-core, ... }@scope:
import ./package.nix scope {
  name = "enginix-answers-${enginix-core.version}";
  kept = [
    "__init__.py"
    "__main__.py"
    "cli.py"
    "commands/__init__.py"
    "commands/reference.py"
    "console.py"
    "credentials.py"
    "data/__init__.py"
    "data/architectures.json"
    "data/gate_facts.json"
    "data/gate_prompts.json"
    "data/gate_text.json"
    "data/quantization.json"
    "device.py"
    "errors.py"
    "files.py"
    "gates/__init__.py"
    "gates/answers.py"
    "gates/asking.py"
    "gates/hf.py"
    "gates/material.py"
    "gates/prompts.py"
    "gates/recall.py"
    "gates/subject.py"
    "manifest.py"
    "model"
    "optional_libraries.py"
    "tables.py"
    "wording.py"
  ];
  inherit (enginix) python;
}
