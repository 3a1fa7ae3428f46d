# A compiled TensorRT plan: needs the target's GPU and a runtime of TensorRT-LLM's engine era.
#
# This version checks the request and names the derivation's inputs; building it stops at once, saying so.
{
  lib,
  pkgs,
  check,
  mkCheckpoint,
  ...
}:
let
  function = ''mkEngine { kind = "tensorrt"; }'';
  gpus = (lib.importJSON ../../python/enginix/data/gpus.json).gpus;
  runtimes = (lib.importJSON ../../python/enginix/data/runtimes.json).runtimes;
in
{
  model ? checkpoint.model,
  checkpoint ? mkCheckpoint { inherit model; },
  # A GPU of data/gpus.json.
  target,
  # A runtime of data/runtimes.json that still has the engine path.
  runtime ? "trtllm-1.2.1",
  limits ? { },
  gates ? { },
  name ? checkpoint.modelName,
}:
let
  gpu = check.target.gpu function gpus target // {
    name = target;
  };
  era = builtins.filter (id: runtimes.${id}.enginePath) (builtins.attrNames runtimes);
  chosen = check.arguments.oneOf function "runtime" era runtime;
  quantization = check.target.quantization "${name}-engine" model.quantization gpu;
in
builtins.seq quantization (
  pkgs.stdenvNoCC.mkDerivation {
    # The SM is in the name: a cache must never hand one GPU's engine to another.
    name = "${name}-engine-sm${toString gpu.sm}";
    buildCommandPath = ../builders/engine-tensorrt.sh;
    inherit model checkpoint;
    inherit (gpu) sm;
    gpu = target;
    runtime = chosen;
    limits = builtins.toJSON limits;
    # Nix then schedules it on a builder that has this GPU, and refuses it elsewhere before it starts.
    requiredSystemFeatures = [
      "cuda"
      "cuda-sm${toString gpu.sm}"
    ];
    passthru = {
      inherit
        checkpoint
        model
        gpu
        limits
        gates
        ;
      kind = "tensorrt";
      modelName = name;
      runtime = chosen;
    };
    meta.description = "TensorRT engine of ${name} for ${target}";
  }
)
