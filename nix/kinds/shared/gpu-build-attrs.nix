# Where a build runs that needs the target's GPU inside a runtime: attributes of its derivation.
#
# Nix then schedules it on a builder that has this GPU, and refuses it elsewhere before it starts.
{ lib, ... }:
# { gpu; stack; model; isolation; } -> attributes
{
  # The target's row.
  gpu,
  # mkRuntime's output.
  stack,
  model,
  # "relaxed" or "features".
  isolation,
}:
{
  requiredSystemFeatures = [
    "cuda"
    "cuda-sm${toString gpu.sm}"
  ];
  rootfs = stack.rootfsFor model;
  driver = if stack.driver == null then "" else stack.driver;
}
// lib.optionalAttrs (isolation == "relaxed") { __noChroot = true; }
