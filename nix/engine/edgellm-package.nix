# The enginix command over the Python that has NVIDIA's exporter: only what exports, builds and serves this kind.
{ enginix-core, edgellm-python, ... }@scope:
let
  kept = [
    "__init__.py"
    "__main__.py"
    "cli.py"
    "commands/__init__.py"
    "commands/edgellm_build.py"
    "commands/edgellm_export.py"
    "commands/edgellm_serve.py"
    "console.py"
    "credentials.py"
    "data/__init__.py"
    "data/architectures.json"
    "data/edgellm.json"
    "data/gpus.json"
    "data/quantization.json"
    "edgellm"
    "engine/__init__.py"
    "engine/check.py"
    "engine/target.py"
    "errors.py"
    "files.py"
    "manifest.py"
    "model"
    "optional_libraries.py"
    "process.py"
    "runtime/__init__.py"
    "runtime/driver.py"
    "runtime/table.py"
    "tables.py"
    "wording.py"
  ];
in
import ../package.nix scope {
  name = "enginix-edgellm-${enginix-core.version}";
  inherit kept;
  python = edgellm-python;
}
