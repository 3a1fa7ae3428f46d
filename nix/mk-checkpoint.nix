# mkCheckpoint :: { model, … } -> derivation
#
# A TensorRT-LLM checkpoint (config.json, rank{r}.safetensors) of a Hugging Face model; pure and on
# CPU, except with converter = "tensorrt_llm".
{
  lib,
  pkgs,
  check,
  enginix-core,
  modelopt-python,
  mkRuntime,
  ...
}@scope:
let
  artefactMeta = import ./artefact-meta.nix { inherit lib; };
  commandWords = import ./command-words.nix { inherit lib; };
  function = "mkCheckpoint";
  table = lib.importJSON ../python/enginix/data/models/converters.json;
  families = lib.importJSON ../python/enginix/data/models/family_rows.json;
  formats = lib.importJSON ../python/enginix/data/models/number_formats.json;
  inherit (lib.importJSON ../python/enginix/data/memory_plan/memory_constants.json) defaults;
  build =
    {
      # mkHfModel's or mkQuantized's output.
      model,
      # Type of the tensors that are not quantized: bfloat16, float16, float32; null keeps the
      # model's.
      dtype ? null,
      tensorParallel ? 1,
      pipelineParallel ? 1,
      expertParallel ? 1,
      # GPUs of each node that will serve it: TensorRT-LLM runs a rank on GPU rank modulo that. 8,
      # its own default.
      gpusPerNode ? defaults.gpusPerNode.value,
      # The converter (data/models/converters.json says what each takes): "enginix", "modelopt" (its
      # export, on CPU), or "tensorrt_llm" (the runtime's own conversion, on a GPU machine).
      converter ? "enginix",
      # Which model of its family it is, where config.json does not tell (Baichuan, ChatGLM): one of
      # variants.names of its row of data/models/family_rows.json.
      variant ? null,
      # For "tensorrt_llm": a runtime that has the engine path, or mkRuntime's output.
      runtime ? "trtllm-1.2.1",
      # For "tensorrt_llm": a GPU of data/machine/gpus.json; null takes any.
      target ? null,
      name ? model.modelName or "model",
    }:
    let
      facts = model.model or { };
      sizes = check.checkpoint.parallelism function facts {
        inherit tensorParallel pipelineParallel expertParallel;
      };
      parallel = sizes // {
        gpusPerNode = check.checkpoint.nodes function sizes gpusPerNode;
      };
      flags = commandWords {
        tensor-parallel = parallel.tensorParallel;
        pipeline-parallel = parallel.pipelineParallel;
        expert-parallel = parallel.expertParallel;
        gpus-per-node = parallel.gpusPerNode;
        inherit converter variant;
        dtype =
          if dtype == null then
            null
          else
            check.arguments.oneOf function "dtype" [ "bfloat16" "float16" "float32" ] dtype;
      };
      row = check.checkpoint.converter function table converter {
        inherit parallel;
        quantization = model.quantization or null;
        model = facts;
      };
      variantOfTheModel =
        if converter == "enginix" then
          check.checkpoint.family function families {
            inherit parallel variant;
            quantization = model.quantization or null;
            model = facts;
          }
        else if variant != null then
          throw "${function}: variant needs converter = \"enginix\"; leave it out."
        else
          null;
      # The other converters take unquantized models only.
      algorithm =
        if converter == "enginix" then
          check.checkpoint.quantization function formats {
            quantization = model.quantization or null;
            model = facts;
          }
        else
          null;
      # So that a wrong argument throws before a derivation exists.
      checked = builtins.deepSeq [
        row
        algorithm
        variantOfTheModel
        flags
        (check.arguments.oneOf function "runtime" runtimeIds id)
        (if target == null then null else check.gpus.find function target)
        (check.engine.pipeline function (facts.architecture or null) parallel.pipelineParallel)
      ] flags;

      id = check.runtime.idOf function runtime;
      runtimeIds = builtins.attrNames (check.runtime.rows runtime);
      stack = check.runtime.packageOf function mkRuntime runtime;
      sm = toString (check.gpus.find function target).sm;
      builders = {
        enginix = {
          buildCommandPath = ./builders/checkpoint.sh;
          nativeBuildInputs = [ enginix-core ];
        };
        # This Python has no enginix.
        modelopt = {
          buildCommandPath = ./builders/checkpoint-modelopt.sh;
          nativeBuildInputs = [ modelopt-python ];
          inherit (scope) environment;
          enginix = enginix-core;
        };
        tensorrt_llm =
          builtins.seq
            (check.engine.runtime function (check.runtime.rows runtime) "tensorrt" {
              inherit target;
              architecture = facts.architecture or null;
              limits = { };
            } id)
            {
              buildCommandPath = ./builders/checkpoint-tensorrt-llm.sh;
              nativeBuildInputs = [ stack.command ];
              requiredSystemFeatures = [ "cuda" ] ++ lib.optional (target != null) "cuda-sm${sm}";
              inherit (stack) rootfs;
              driver = if stack.driver == null then "" else stack.driver;
              runtime = stack.word;
              enginix = enginix-core;
            };
      };
    in
    pkgs.stdenvNoCC.mkDerivation (
      builders.${converter}
      // {
        name = builtins.seq checked "${name}-checkpoint";
        inherit model;
        flags = lib.escapeShellArgs checked;
        # The manifest names the source of the weights; serving does not need the source itself.
        disallowedReferences = [ model ];
        passthru = {
          inherit model parallel;
          modelName = name;
          inherit (model) quantization;
          worldSize = parallel.tensorParallel * parallel.pipelineParallel;
        };
        meta = artefactMeta model { description = "TensorRT-LLM checkpoint of ${name}"; };
      }
    );
in
check.arguments.call function build
