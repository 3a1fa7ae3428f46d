# Settings of a served engine: arguments of mkTritonRepo by name, or options of the engine's own
# server.
#
# Null is left out, so that defaults are the function's. Other names are passed on, too; the
# function refuses those that it or the engine's kind does not know.
{ lib }:
let
  inherit (lib) mkOption types;
  scalar = types.oneOf [
    types.bool
    types.int
    types.float
    types.str
  ];
  count =
    description:
    mkOption {
      type = types.nullOr types.ints.unsigned;
      default = null;
      inherit description;
    };
  switch =
    description:
    mkOption {
      type = types.nullOr types.bool;
      default = null;
      inherit description;
    };
in
{
  freeformType = types.attrsOf (types.nullOr scalar);
  options = {
    maxBatchSize = count "Requests that are computed together; at most the engine's.";
    maxQueueDelayMicroseconds = count "Microseconds of waiting to fill a batch (kind tensorrt).";
    maxQueueSize = count "Requests that may wait; further ones are refused.";
    preprocessingInstances = count "Processes that tokenize (kind tensorrt).";
    postprocessingInstances = count "Processes that turn tokens into text (kind tensorrt).";
    ensembleInstances = count (
      "Processes that tokenize and turn tokens into text (kinds reference and rtx)."
    );
    blsInstances = count "Processes of tensorrt_llm_bls (kind tensorrt).";
    decoupled = switch "Several responses a request, which streaming needs.";
    accumulateTokens = switch (
      "Whether tensorrt_llm_bls decodes all tokens of an answer together (kind tensorrt)."
    );
    device = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "cuda";
      description =
        "Where the reference executor runs: `cpu`, `cuda` or `cuda:<n>` (kind reference).";
    };
    interpreter = switch (
      "Whether PyTorch executes the engine's network on the CPU in place of NVIDIA's runtime, for "
      + "tests (kind rtx)."
    );
    logitsDatatype = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "TYPE_FP32";
      description = "Type of returned logits (kind tensorrt).";
    };
    parameters = mkOption {
      type = types.attrsOf scalar;
      default = { };
      example = {
        kv_cache_free_gpu_mem_fraction = 0.85;
        enable_kv_cache_reuse = true;
      };
      description = "Parameters of the C++ backend (kind tensorrt); docs/reference/triton.md lists them.";
    };
  };
}
