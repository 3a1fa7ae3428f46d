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
  function = "mkTritonRepo";
  kinds = import ./kinds;
  # Nix name -> the command's flag; defaults are the command's.
  sizes = {
    maxBatchSize = "--max-batch-size";
    maxQueueSize = "--max-queue-size";
    ensembleInstances = "--ensemble-instances";
    maxQueueDelayMicroseconds = "--max-queue-delay-microseconds";
    preprocessingInstances = "--preprocessing-instances";
    postprocessingInstances = "--postprocessing-instances";
    blsInstances = "--bls-instances";
  };
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
      [
        "--parameter"
        "${name}=${check.arguments.oneOf function "parameters.${name}" row.values text}"
      ]
    else
      [
        "--parameter"
        "${name}=${text}"
      ];
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
      flags =
        lib.optionals (builtins.elem "device" kinds.${engine.kind}.tritonRepo) [
          "--device"
          device
        ]
        ++ lib.optionals interpreter [
          "--interpreter"
          "${engine.checkpoint}"
        ]
        ++ builtins.concatLists (
          lib.mapAttrsToList (option: flag: [
            flag
            (check.arguments.atLeast function option 0 args.${option})
          ]) (lib.filterAttrs (option: _: args ? ${option}) sizes)
        )
        ++ lib.optional (!decoupled) "--no-decoupled"
        ++ lib.optional (!chat) "--no-chat"
        ++ lib.optional (!addSpecialTokens) "--no-add-special-tokens"
        ++ lib.optional (!skipSpecialTokens) "--keep-special-tokens"
        ++ lib.optional (!excludeInputInOutput) "--include-input"
        ++ lib.optionals (args ? maxTokensLimit) [
          "--max-tokens-limit"
          (check.arguments.atLeast function "maxTokensLimit" 1 args.maxTokensLimit)
        ]
        ++ builtins.concatMap (model: [
          "--add-model"
          "${model}"
        ]) addModels
        ++ lib.optional (!accumulateTokens) "--no-accumulate-tokens"
        ++ lib.optionals (args ? logitsDatatype) [
          "--logits-datatype"
          (check.arguments.oneOf function "logitsDatatype" contract.datatypes.logits_datatype
            args.logitsDatatype
          )
        ]
        ++ builtins.concatLists (lib.mapAttrsToList parameter parameters);
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
