# mkEngineMatrix :: { targets, … } -> { <target> = derivation; }
#
# One model for several GPUs: mkEngine for each target, with the same arguments. Each engine
# requires its GPU's feature (cuda-sm<N>), so that Nix's distributed builds place it on a builder
# that has that GPU.
{
  lib,
  check,
  mkEngine,
  ...
}:
let
  function = "mkEngineMatrix";
  inherit (check.arguments) describe;
  # A list's GPUs name the engines, so they are names.
  named =
    gpu:
    if builtins.isString gpu then
      gpu
    else
      throw (
        "${function}: targets holds ${describe gpu}; a list takes names of GPUs, \"sm89-16gb\" "
        + "for any other. Else pass { NAME = { target = …; }; }."
      );
  argumentsOf =
    name: value:
    if builtins.isAttrs value then
      value
    else
      throw (
        "${function}: targets.${name} is ${describe value}; pass mkEngine's arguments for it: "
        + "targets.${name} = { target = …; }."
      );
  build =
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
          lib.genAttrs (map named targets) (gpu: {
            target = gpu;
          })
        else if builtins.isAttrs targets then
          builtins.mapAttrs argumentsOf targets
        else
          throw (
            "${function}: targets is ${describe targets}; pass a list of GPUs, or "
            + "{ NAME = { target = …; }; }."
          );
    in
    if args ? target then
      throw "${function}: pass targets, not target."
    else if builtins.isList targets && common.kind or "tensorrt" == "rtx" then
      throw (
        "${function}: one engine of kind rtx is for several GPUs; pass them to mkEngine: "
        + "mkEngine { kind = \"rtx\"; targets = [ … ]; }."
      )
    else if argumentsByTarget == { } then
      throw "${function}: targets is empty."
    else
      builtins.mapAttrs (
        _: targetArguments: mkEngine ({ kind = "tensorrt"; } // common // targetArguments)
      ) argumentsByTarget;
in
args: build (check.arguments.whole function build args)
