# Gates of an engine that its own runtime executes, in steps of their own: what is asked, what the engine says (on its
# GPU), what the gates make of it (pure). A changed bound builds the last step again; a changed engine the last two.
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
  artefactMeta = import ../artefact-meta.nix scope;
  package = import ./outside-package.nix scope;
  table = lib.importJSON ../../python/enginix/data/judgement/gates.json;
  gatesOf =
    what: builtins.attrNames (lib.filterAttrs (_: row: builtins.elem what row.of) table.gates);
  ofEngines = gatesOf "engine";
  ofCheckpoints = builtins.filter (gate: !builtins.elem gate ofEngines) (gatesOf "checkpoint");
in
{
  # For errors: mkEngine { kind = …; }.
  function,
  kind,
  name,
  # The engine as it was built, and what both it and the gated engine tell.
  ungated,
  passthru,
  model,
  # A checkpoint to which the gates logits and coverage apply; null where there is none.
  checkpoint ? null,
  # gate → bounds; null takes the kind's defaults, { } is "not gated".
  gates,
  # mkReferenceAnswers' output; null makes it of the model before quantization.
  reference,
  # Whether the runtime scores texts.
  contextLogits ? false,
  # Why nobody can ask this engine; null where somebody can.
  mute ? null,
  # What asks it: part of the package, words of the command, attributes of the derivation (GPU, isolation).
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
      throw "${function}: ${name} is quantized (${model.quantization}), and gates compare with the model before that; pass reference = mkReferenceAnswers { model = …; } of it, or gates = { }."
    else
      mkReferenceAnswers { model = original; };
  questions = answersOf.questions or null;

  row = table.kinds.${kind};
  defaults = lib.genAttrs (row.default ++ lib.optionals contextLogits row.withContextLogits) (_: { });
  named = check.arguments.only "${function}: gates" (ofEngines ++ lib.optionals (checkpoint != null) ofCheckpoints) gates;
  wanted = if gates == null then defaults else named;
  checked = removeAttrs wanted ofCheckpoints;
  ofCheckpoint = removeAttrs wanted ofEngines;
  gatedCheckpoint =
    if ofCheckpoint == { } then
      null
    else
      mkEngine {
        kind = "reference";
        inherit model checkpoint name;
        gates = ofCheckpoint;
      };

  asked = pkgs.stdenvNoCC.mkDerivation {
    name = "${original.modelName or name}-asked";
    buildCommandPath = ../builders/outside-ask.sh;
    nativeBuildInputs = [ (package "ask") ];
    inherit model environment;
    questions = if questions == null then "" else "${questions}";
    allowedReferences = [ ];
  };

  # What the engine says: asked once, however often it is judged.
  answers = pkgs.stdenvNoCC.mkDerivation (
    asker.attributes
    // {
      name = "${name}-engine-said";
      buildCommandPath = ../builders/outside-answers.sh;
      nativeBuildInputs = [ (package asker.part) ];
      engine = ungated;
      inherit asked;
      flags = lib.escapeShellArgs asker.words;
      allowedReferences = [ ];
      passthru = {
        inherit asked;
        artefact = "answers";
      };
      meta = artefactMeta (passthru.model or { }) { description = "What the engine of ${name} says"; };
    }
  );

  told = passthru // {
    inherit gates ungated answers;
  };

  gated = pkgs.stdenvNoCC.mkDerivation {
    name = "${ungated.name}-gated";
    buildCommandPath = ../builders/outside-gate.sh;
    nativeBuildInputs = [ enginix ];
    engine = ungated;
    # Only checkpoints are gated: nobody has to ask the engine.
    said = if checked == { } then "" else answers;
    reference = if checked == { } then model else answersOf;
    inherit model environment;
    flags = lib.escapeShellArgs (
      [
        "--gates"
        (builtins.toJSON checked)
      ]
      ++ lib.optionals (questions != null) [
        "--questions"
        "${questions}"
      ]
      ++ lib.optionals (gatedCheckpoint != null) [
        "--gated-checkpoint"
        "${gatedCheckpoint}"
      ]
    );
    passthru = told // {
      reference = answersOf;
    };
    inherit meta;
  };

  # No default where nothing can be compared; what is asked for is an error instead.
  silent =
    if mute != null then
      mute
    else if reference == null && quantized then
      "the model is quantized and its original is not known; pass reference = mkReferenceAnswers { model = …; }"
    else
      null;
in
if gates == { } then
  ungated // told
else if gates == null && silent != null then
  warn "${name}-engine: not gated: ${silent}" (ungated // told)
else if mute != null && checked != { } then
  throw "${function}: gates: ${mute}; leave gates out."
else
  builtins.deepSeq wanted gated
