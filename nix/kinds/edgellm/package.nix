# The enginix command over the Python that has NVIDIA's exporter: only what exports, builds and
# serves this kind.
{ enginix-core, edgellm-python, ... }@scope:
let
  folders = [
    "cli/edgellm"
    "compatibility"
    "data/edgellm"
    "data/judgement"
    "data/machine"
    "data/models"
    "kinds/edgellm"
    "machine"
    "model"
  ];
in
import ../../package.nix scope {
  name = "enginix-edgellm-${enginix-core.version}";
  inherit folders;
  python = edgellm-python;
}
