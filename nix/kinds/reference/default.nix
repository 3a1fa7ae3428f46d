# The checkpoint executed by plain PyTorch, on CPU or any GPU; pure.
{
  lib,
  pkgs,
  check,
  enginix,
  environment,
  mkCheckpoint,
  mkReferenceAnswers,
  ...
}:
let
  artefactMeta = import ../../artefact-meta.nix { inherit lib; };
  commandWords = import ../../command-words.nix { inherit lib; };
  function = ''mkEngine { kind = "reference"; }'';

  # The model before quantization.
  originalOf =
    name: model:
    if model ? original then
      model.original
    else if (model.quantization or null) != null then
      throw (
        ''${function}: ${name} is quantized (${model.quantization}), and its gates compare it ''
        + ''with the model before quantization: pass that one, reference = mkHfModel { … }; or ''
        + ''gates = { }, which is recorded as "not gated".''
      )
    else
      model;
in
{
  # mkHfModel's output, or mkQuantized's.
  model ? quantized,
  quantized ? checkpoint.model,
  checkpoint ? mkCheckpoint { inherit model; },
  # Gates that must pass before the engine exists, each with its bounds; null takes the defaults of
  # data/judgement/gates.json for the checkpoint's format, { } is recorded as "not gated".
  gates ? null,
  # The gates' baseline: the model before quantization, whose answers are a derivation of their
  # own and shared by all its engines; mkReferenceAnswers' output, for other questions or a GPU; or
  # null: `model` itself, asked in this build.
  reference ? originalOf name model,
  # Nothing to choose: it runs anywhere, on its own runtime, within the checkpoint's limits.
  target ? null,
  runtime ? "reference",
  limits ? { },
  name ? checkpoint.modelName,
}:
let
  architecture = model.model.architecture or null;
  answers =
    if gates == { } then
      null
    else if
      reference == null
      || !builtins.isAttrs reference
      || reference.artefact or null == "answers"
    then
      reference
    else
      mkReferenceAnswers { model = reference; };
  questions = answers.questions or null;
  original = answers.model or null;

  requestedGates =
    if gates == null then
      null
    else
      check.arguments.only "${function}: gates" (builtins.attrNames (
        lib.filterAttrs (_: row: builtins.elem "checkpoint" row.of)
          (lib.importJSON ../../../python/enginix/data/judgement/gates.json).gates
      )) gates;
  flags = commandWords {
    gates = if requestedGates == null then null else builtins.toJSON requestedGates;
    reference = answers;
    # The gate weights compares with it, too; answers have no weights.
    inherit original questions;
  };
in
if target != null then
  throw (
    "${function}: target = ${check.arguments.describe target}, "
    + "but the reference kind is built for no GPU: leave target out."
  )
else if runtime != "reference" then
  throw (
    "${function}: runtime = ${check.arguments.describe runtime}, "
    + "but the reference kind brings its own: leave runtime out."
  )
else if !check.checkpoint.isComputed architecture then
  throw (
    "${function}: the reference executor does not compute ${architecture}: use a kind that "
    + "enginix compare MODEL lists."
  )
else if limits != { } then
  throw "${function}: limits are the checkpoint's own for this kind: leave limits out."
else
  pkgs.stdenvNoCC.mkDerivation {
    name = "${name}-engine";
    buildCommandPath = ../../builders/engine-reference.sh;
    nativeBuildInputs = [ enginix ];
    inherit checkpoint model environment;
    engineName = name;
    flags = lib.escapeShellArgs flags;
    passthru = {
      inherit checkpoint model gates;
      reference = answers;
      kind = "reference";
      modelName = name;
      runtime = "reference";
    };
    meta = artefactMeta model { description = "Reference engine of ${name} (plain PyTorch)"; };
  }
