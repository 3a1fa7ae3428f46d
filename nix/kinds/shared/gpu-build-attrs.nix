# Where a build runs that needs the target's GPU inside a runtime: attributes of its derivation.
scope:
let
  gpuAccess = import ../../gpu-access.nix scope;
in
{
  # For errors: mkEngine { kind = …; }.
  function,
  # The target's row.
  gpu,
  # mkRuntime's output.
  stack,
  model,
  # "relaxed" or "features".
  isolation,
}:
gpuAccess function isolation [
  "cuda"
  "cuda-sm${toString gpu.sm}"
]
// {
  rootfs = stack.rootfsFor model;
  driver = if stack.driver == null then "" else stack.driver;
}
