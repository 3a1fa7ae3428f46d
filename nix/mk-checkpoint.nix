# mkCheckpoint :: { model, … } -> derivation
#
# A TensorRT-LLM checkpoint (config.json, rank{r}.safetensors) of a Hugging Face model; pure, on CPU.
{
  lib,
  pkgs,
  check,
  enginix-core,
  ...
}:
let
  function = "mkCheckpoint";
  architectures = builtins.attrNames (lib.importJSON ../python/enginix/data/architectures.json).architectures;
  known = [
    "model"
    "dtype"
    "tensorParallel"
    "pipelineParallel"
    "expertParallel"
    "converter"
    "name"
  ];
  build =
    {
      # mkHfModel's or mkQuantized's output.
      model,
      # Type of the tensors that are not quantized: bfloat16, float16, float32; null keeps the model's.
      dtype ? null,
      tensorParallel ? 1,
      pipelineParallel ? 1,
      expertParallel ? 1,
      # Who converts: "enginix" (the architectures of data/architectures.json).
      converter ? "enginix",
      name ? model.modelName or "model",
    }:
    let
      facts = check.checkpoint.architecture function architectures (model.model or { });
      parallel = check.checkpoint.parallelism function facts {
        inherit tensorParallel pipelineParallel expertParallel;
      };
      flags = [
        "--tensor-parallel"
        parallel.tensorParallel
        "--pipeline-parallel"
        parallel.pipelineParallel
        "--expert-parallel"
        parallel.expertParallel
        "--converter"
        (check.arguments.oneOf function "converter" [ "enginix" ] converter)
      ]
      ++ lib.optionals (dtype != null) [
        "--dtype"
        (check.arguments.oneOf function "dtype" [
          "bfloat16"
          "float16"
          "float32"
        ] dtype)
      ];
      # So that a wrong argument throws before a derivation exists.
      checked = builtins.deepSeq flags flags;
    in
    pkgs.stdenvNoCC.mkDerivation {
      name = "${name}-checkpoint";
      buildCommandPath = ./builders/checkpoint.sh;
      nativeBuildInputs = [ enginix-core ];
      inherit model;
      flags = lib.escapeShellArgs checked;
      # The manifest names where the weights come from; nothing that serves needs the weights themselves.
      passthru = {
        inherit model parallel;
        modelName = name;
        inherit (model) quantization;
        worldSize = parallel.tensorParallel * parallel.pipelineParallel;
      };
      meta.description = "TensorRT-LLM checkpoint of ${name}";
    };
in
args: build (check.arguments.only function known args)
