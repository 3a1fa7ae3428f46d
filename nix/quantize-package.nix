# The enginix command over the Python that has NVIDIA's quantizer: only what calibrates and quantizes, so that a change
# of anything else quantizes nothing again.
{ enginix-core, modelopt-python, ... }@scope:
let
  kept = [
    "__init__.py"
    "__main__.py"
    "cli.py"
    "commands/__init__.py"
    "commands/calibrate.py"
    "commands/quantize.py"
    "console.py"
    "credentials.py"
    "data/__init__.py"
    "data/calibration.json"
    "data/calibration_default.jsonl"
    "data/quantization.json"
    "data/quantize.json"
    "device.py"
    "errors.py"
    "files.py"
    "manifest.py"
    "model"
    "optional_libraries.py"
    "quantize"
    "tables.py"
    "wording.py"
  ];
in
import ./package.nix scope {
  name = "enginix-quantize-${enginix-core.version}";
  inherit kept;
  python = modelopt-python;
}
