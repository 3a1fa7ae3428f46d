# The checkpoint executed by plain PyTorch, on CPU or any GPU; pure.
{
  lib,
  pkgs,
  check,
  enginix,
  environment,
  mkCheckpoint,
  ...
}:
let
  function = ''mkEngine { kind = "reference"; }'';
in
{
  model ? checkpoint.model,
  checkpoint ? mkCheckpoint { inherit model; },
  # Gates that must pass before the engine exists. { } is recorded as "not gated".
  gates ? {
    logits = { };
  },
  # Nothing to choose: it runs anywhere, on its own runtime, within the checkpoint's limits.
  target ? null,
  runtime ? "reference",
  limits ? { },
  name ? checkpoint.modelName,
}:
let
  wanted = check.arguments.only "${function}: gates" [ "logits" ] gates;
  flags =
    if wanted == { } then
      [ "--no-gates" ]
    else
      lib.optionals (wanted.logits ? tolerance) [
        "--tolerance"
        wanted.logits.tolerance
      ];
in
if target != null then
  throw "${function}: target = ${builtins.toJSON target}, but the reference kind is built for no GPU: leave target out."
else if runtime != "reference" then
  throw "${function}: runtime = ${builtins.toJSON runtime}, but the reference kind brings its own: leave runtime out."
else if limits != { } then
  throw "${function}: limits are the checkpoint's own for this kind: leave limits out."
else
  pkgs.stdenvNoCC.mkDerivation {
    name = "${name}-engine";
    buildCommandPath = ../builders/engine-reference.sh;
    nativeBuildInputs = [ enginix ];
    inherit checkpoint model environment;
    engineName = name;
    flags = lib.escapeShellArgs flags;
    passthru = {
      inherit checkpoint model;
      kind = "reference";
      modelName = name;
      runtime = "reference";
    };
    meta.description = "Reference engine of ${name} (plain PyTorch)";
  }
