# mkEngineMatrix :: { targets, … } -> { <target> = derivation; }
#
# One model for several GPUs: mkEngine for each target, with the same arguments. Each engine
# requires its GPU's feature (cuda-sm<N>), so that Nix's distributed builds place it on a builder
# that has that GPU.
{
  lib,
  mkEngine,
  ...
}:
let
  function = "mkEngineMatrix";
in
{
  # GPUs of data/machine/gpus.json; or { name = ARGUMENTS; }, with mkEngine's arguments for that
  # target.
  targets,
  ...
}@args:
let
  common = builtins.removeAttrs args [ "targets" ];
  argumentsByTarget =
    if builtins.isList targets then
      lib.genAttrs targets (gpu: {
        target = gpu;
      })
    else
      targets;
in
if args ? target then
  throw "${function}: pass targets, not target."
else if argumentsByTarget == { } then
  throw "${function}: targets is empty."
else
  builtins.mapAttrs (
    _: targetArguments: mkEngine ({ kind = "tensorrt"; } // common // targetArguments)
  ) argumentsByTarget
