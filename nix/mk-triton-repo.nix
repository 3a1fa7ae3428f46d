# mkTritonRepo :: { engine, … } -> derivation
#
# A Triton model repository, of any kind of engine; validated before it exists. NVIDIA's model.py of
# the kinds tensorrt and llmapi are links to their place inside the runtime's image, where the
# server runs.
{
  lib,
  pkgs,
  check,
  enginix,
  ...
}:
let
  artefactMeta = import ./artefact-meta.nix { inherit lib; };
  commandWords = import ./command-words.nix { inherit lib; };
  function = "mkTritonRepo";
  kinds = import ./kinds;
  contract = lib.importJSON ../python/enginix/data/triton/triton_contract.json;
  parameterRows = contract.models.tensorrt_llm.parameters;
  rowNames = builtins.attrNames parameterRows;

  # The checks of a parameter at evaluation; the command checks values.
  parameter =
    name: value:
    let
      row =
        parameterRows.${name}
          or (throw "${function}: parameters: ${check.names.unknown "parameter" name rowNames}");
      text =
        if builtins.isBool value then
          (if value then "true" else "false")
        # toString of a float has six digits, toJSON all of them.
        else if builtins.isFloat value then
          builtins.toJSON value
        else
          toString value;
    in
    if row ? own then
      throw "${function}: parameters.${name}: enginix writes it itself: ${row.own}; leave it out."
    else if row ? refused then
      throw "${function}: parameters.${name}: ${row.refused}; leave it out."
    else if row ? values then
      "${name}=${check.arguments.oneOf function "parameters.${name}" row.values text}"
    else
      "${name}=${text}";
  build =
    {
      # mkEngine's output.
      engine,
      name ? engine.modelName,
      # Where the reference executor runs: "cpu", "cuda", "cuda:<n>".
      device ? "cpu",
      # Kind rtx: PyTorch executes the network of the engine's checkpoint on the CPU, in place of
      # NVIDIA's runtime; for tests.
      interpreter ? false,
      # Several responses a request, which streaming needs.
      decoupled ? true,
      # Take messages, through the model's chat template; without it NVIDIA's models are linked as
      # they are.
      chat ? true,
      # tensorrt_llm_bls decodes all tokens of an answer together, so that no space is lost.
      accumulateTokens ? true,
      # Put the tokenizer's special tokens around a prompt; leave them out of the text; answer
      # without the prompt.
      addSpecialTokens ? true,
      skipSpecialTokens ? true,
      excludeInputInOutput ? true,
      # Further model directories, each named as its model.
      addModels ? [ ],
      # Parameters of the C++ backend, as docs/reference/triton.md lists them.
      parameters ? { },
      ...
    }@args:
    let
      limit = engine.request.limits.maxBatchSize or engine.limits.maxBatchSize or null;
      triton =
        if kinds.${engine.kind}.inImage then
          check.runtime.triton function engine.runtimePackage
        else
          null;
      atLeast =
        least: option:
        if args ? ${option} then
          check.arguments.atLeast function option least args.${option}
        else
          null;
      hasDevice = builtins.elem "device" kinds.${engine.kind}.tritonRepo;
      # What is not passed is the command's default.
      flags = commandWords {
        device = if hasDevice then device else null;
        interpreter = if interpreter then engine.checkpoint else null;
        max-batch-size = atLeast 0 "maxBatchSize";
        max-queue-size = atLeast 0 "maxQueueSize";
        ensemble-instances = atLeast 0 "ensembleInstances";
        max-queue-delay-microseconds = atLeast 0 "maxQueueDelayMicroseconds";
        preprocessing-instances = atLeast 0 "preprocessingInstances";
        postprocessing-instances = atLeast 0 "postprocessingInstances";
        bls-instances = atLeast 0 "blsInstances";
        max-tokens-limit = atLeast 1 "maxTokensLimit";
        no-decoupled = !decoupled;
        no-chat = !chat;
        no-add-special-tokens = !addSpecialTokens;
        keep-special-tokens = !skipSpecialTokens;
        include-input = !excludeInputInOutput;
        no-accumulate-tokens = !accumulateTokens;
        add-model = addModels;
        logits-datatype =
          if args ? logitsDatatype then
            check.arguments.oneOf function "logitsDatatype" contract.datatypes.logits_datatype
              args.logitsDatatype
          else
            null;
        parameter = lib.mapAttrsToList parameter parameters;
      };
    in
    if limit != null && args ? maxBatchSize && args.maxBatchSize > limit then
      throw (
        "${function}: maxBatchSize = ${toString args.maxBatchSize} is above the engine's "
        + "${toString limit}; lower it, or raise limits.maxBatchSize of mkEngine."
      )
    else
      pkgs.stdenvNoCC.mkDerivation {
        name = "${name}-triton-repo";
        buildCommandPath = ./builders/triton-repo.sh;
        nativeBuildInputs = [ enginix ];
        inherit engine;
        flags = lib.escapeShellArgs (builtins.deepSeq [ triton flags ] flags);
        passthru = {
          inherit engine device interpreter;
          inherit (engine) kind runtime;
          modelName = name;
        };
        meta = artefactMeta engine { description = "Triton model repository of ${name}"; };
      };
  ofKind =
    { engine, ... }@args:
    if kinds.${engine.kind}.tritonRepo or null == null then
      throw (
        "${function}: engine.kind: an engine of kind ${engine.kind} has no Triton repository."
      )
    else
      build (
        check.arguments.only "${function} of kind ${engine.kind}" (
          [
            "engine"
            "name"
            "addModels"
          ]
          ++ kinds.${engine.kind}.tritonRepo
        ) args
      );
in
args:
let
  given = check.arguments.whole function ofKind args;
in
builtins.seq (check.arguments.output function "engine" "mkEngine" given.engine) (
  ofKind given
)
