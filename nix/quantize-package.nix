# The enginix command over the Python that has NVIDIA's quantizer: only what calibrates and
# quantizes, so that no other change quantizes a model again.
{ enginix-core, modelopt-python, ... }@scope:
let
  folders = [
    "cli/quantization"
    "data/models"
    "data/quantization"
    "model"
    "quantize"
  ];
in
import ./package.nix scope {
  name = "enginix-quantize-${enginix-core.version}";
  inherit folders;
  python = modelopt-python;
}
