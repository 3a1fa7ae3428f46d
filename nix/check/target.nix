{ lib, names, ... }:
let
  # The least SM of each quantization, from TensorRT-LLM's support matrix (facts: trtllm.md section 6).
  leastSm = {
    NVFP4 = 100;
    FP8 = 89;
  };
in
{
  # A target GPU by name.
  # gpu :: string -> set -> string -> set
  gpu =
    function: gpus: name:
    gpus.${name} or (throw "${function}: ${names.unknown "target" name (builtins.attrNames gpus)}");

  # A quantization against a GPU's SM.
  # quantization :: string -> string|null -> { sm; … } -> string|null
  quantization =
    function: algorithm: gpu:
    let
      least = leastSm.${if algorithm == null then "" else algorithm} or 0;
    in
    if gpu.sm < least then
      throw ''${function}: ${algorithm} needs SM ${toString least} or later; target "${gpu.name}" is SM ${toString gpu.sm}. Use a model quantized to ${if gpu.sm >= 89 then "FP8" else "W4A16_AWQ"} on this GPU, or another target.''
    else
      algorithm;
}
