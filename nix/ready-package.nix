# The enginix command that asks a server whether it answers: an image's probe, without torch.
{ enginix-core, ... }@scope:
let
  folders = [
    "cli/serving"
    "data/machine"
    "kinds/registry"
    "machine"
    "model"
    "rollout"
    "serve"
    "triton"
  ];
in
import ./package.nix scope {
  name = "enginix-ready-${enginix-core.version}";
  inherit folders;
  inherit (enginix-core) python;
}
