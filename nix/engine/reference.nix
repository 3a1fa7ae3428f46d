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
  # Gates that must pass before the engine exists, each with its bounds; null takes the defaults of
  # data/gates.json for the checkpoint's format, { } is recorded as "not gated".
  gates ? null,
  # Output of `enginix reference`: the model's own answers, for gates of quantized checkpoints.
  reference ? null,
  # Nothing to choose: it runs anywhere, on its own runtime, within the checkpoint's limits.
  target ? null,
  runtime ? "reference",
  limits ? { },
  name ? checkpoint.modelName,
}:
let
  wanted =
    if gates == null then
      null
    else
      check.arguments.only "${function}: gates" [
        "logits"
        "coverage"
        "smoke"
        "agreement"
        "perplexity"
        "task"
        "invariance"
      ] gates;
  flags =
    lib.optionals (wanted != null) [
      "--gates"
      (builtins.toJSON wanted)
    ]
    ++ lib.optionals (reference != null) [
      "--reference"
      "${reference}"
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
