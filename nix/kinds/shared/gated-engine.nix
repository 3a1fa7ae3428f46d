# Gates of an engine that its own runtime executes, in three derivations: the questions, the
# engine's answers (on its GPU), the judgement of the gates (pure). A changed bound builds the last
# one again; a changed engine the last two.
{
  lib,
  pkgs,
  check,
  enginix,
  environment,
  mkEngine,
  mkReferenceAnswers,
  warn,
  ...
}@scope:
let
  artefactMeta = import ../../artefact-meta.nix scope;
  commandWords = import ../../command-words.nix { inherit lib; };
  package = import ./asker-package.nix scope;
  table = lib.importJSON ../../../python/enginix/data/judgement/gates.json;
  gatesOf =
    what: builtins.attrNames (lib.filterAttrs (_: row: builtins.elem what row.of) table.gates);
  engineGateNames = gatesOf "engine";
  checkpointGateNames = builtins.filter (gate: !builtins.elem gate engineGateNames) (
    gatesOf "checkpoint"
  );
in
{
  # For errors: mkEngine { kind = …; }.
  function,
  kind,
  name,
  # The engine as it was built, and the passthru of both it and the gated engine.
  ungated,
  passthru,
  model,
  # The checkpoint to which the gates logits and coverage apply, or null.
  checkpoint ? null,
  # gate → bounds; null takes the kind's defaults, { } is "not gated".
  gates,
  # mkReferenceAnswers' output; null makes it of the model before quantization.
  reference,
  # Whether the runtime scores texts.
  contextLogits ? false,
  # Why this engine cannot be asked; null if it can.
  notAskableReason ? null,
  # What asks it: part of the package, words of the command, attributes of the derivation (GPU,
  # isolation).
  asker,
  meta ? { },
}:
let
  original = model.original or model;
  quantized = (model.quantization or null) != null && !(model ? original);
  answersOf =
    if reference != null then
      reference
    else if quantized then
      throw (
        "${function}: ${name} is quantized (${model.quantization}), and gates compare with the "
        + "model before that; pass reference = mkReferenceAnswers { model = …; } of it, "
        + "or gates = { }."
      )
    else
      mkReferenceAnswers { model = original; };
  questions = answersOf.questions or null;

  row = table.kinds.${kind};
  defaultGates = lib.genAttrs (
    row.default ++ lib.optionals contextLogits row.withContextLogits
  ) (_: { });
  gateNames = engineGateNames ++ lib.optionals (checkpoint != null) checkpointGateNames;
  givenGates = check.arguments.only "${function}: gates" gateNames gates;
  requestedGates = if gates == null then defaultGates else givenGates;
  engineGates = removeAttrs requestedGates checkpointGateNames;
  checkpointGates = removeAttrs requestedGates engineGateNames;
  gatedCheckpoint =
    if checkpointGates == { } then
      null
    else
      mkEngine {
        kind = "reference";
        inherit model checkpoint name;
        gates = checkpointGates;
      };

  asked = pkgs.stdenvNoCC.mkDerivation {
    name = "${original.modelName or name}-asked";
    buildCommandPath = ../../builders/outside-ask.sh;
    nativeBuildInputs = [ (package "ask") ];
    inherit model environment;
    questions = if questions == null then "" else "${questions}";
    allowedReferences = [ ];
  };

  # The engine's answers: it is asked once, however often it is judged.
  answers = pkgs.stdenvNoCC.mkDerivation (
    asker.attributes
    // {
      name = "${name}-engine-answers";
      buildCommandPath = ../../builders/outside-answers.sh;
      nativeBuildInputs = [ (package asker.part) ];
      engine = ungated;
      inherit asked;
      flags = lib.escapeShellArgs (commandWords asker.options);
      allowedReferences = [ ];
      passthru = {
        inherit asked;
        artefact = "answers";
      };
      meta = artefactMeta (passthru.model or { }) {
        description = "Answers of the engine of ${name}";
      };
    }
  );

  enginePassthru = passthru // {
    inherit gates ungated answers;
  };

  gated = pkgs.stdenvNoCC.mkDerivation {
    name = "${ungated.name}-gated";
    buildCommandPath = ../../builders/outside-gate.sh;
    nativeBuildInputs = [ enginix ];
    engine = ungated;
    # With gates of the checkpoint alone the engine is not asked.
    answers = if engineGates == { } then "" else answers;
    reference = if engineGates == { } then model else answersOf;
    inherit model environment;
    flags = lib.escapeShellArgs (commandWords {
      gates = builtins.toJSON engineGates;
      inherit questions;
      gated-checkpoint = gatedCheckpoint;
    });
    passthru = enginePassthru // {
      reference = answersOf;
    };
    inherit meta;
  };

  # Without a baseline there are no default gates; gates that are requested are an error instead.
  notGatedReason =
    if notAskableReason != null then
      notAskableReason
    else if reference == null && quantized then
      "the model is quantized and its original is not known; "
      + "pass reference = mkReferenceAnswers { model = …; }"
    else
      null;
in
if gates == { } then
  ungated // enginePassthru
else if gates == null && notGatedReason != null then
  warn "${name}-engine: not gated: ${notGatedReason}" (ungated // enginePassthru)
else if notAskableReason != null && engineGates != { } then
  throw "${function}: gates: ${notAskableReason}; leave gates out."
else
  builtins.deepSeq requestedGates gated
