# Whether a TensorRT Edge-LLM engine fits its GPU, at evaluation.
#
# One GPU, float16, no free parameters: the wheel's builder fixes the KV cache at maxBatchSize
# sequences of maxKvCacheCapacity tokens, in pages (data/edgellm/edgellm.json, memory).
# docs/reference/memory-plan.md says what is exact.
{ lib, plan, ... }:
let
  inherit (plan) requireMemory;
  table = lib.importJSON ../../python/enginix/data/edgellm/edgellm.json;
  arithmetic = import ./memory.nix { inherit lib; };
  page = table.memory.pageTokens.value;
  cache = {
    block = page;
    percent = 100;
  };

  # Limits as the shared arithmetic names them.
  asSharedLimits =
    l:
    l
    // {
      maxNumTokens = l.maxBatchSize * l.maxInputLen;
      maxSeqLen = l.maxKvCacheCapacity;
      sequences = l.maxBatchSize;
      tensorParallel = 1;
      pipelineParallel = 1;
    };
  memory = m: gpu: l: arithmetic.memory cache m gpu (asSharedLimits l);

  # What the wheel's builder counts in 32 bits; beyond it Nix's own numbers would wrap, and
  # everything would fit.
  inherit (table.memory) stepTokens pagedTokens poolPages;
  countLimitError =
    l:
    if l.maxBatchSize > stepTokens.most / l.maxInputLen then
      "limits.maxBatchSize × limits.maxInputLen is more than ${toString stepTokens.most} tokens; "
      + "lower one of them"
    else if l.maxKvCacheCapacity > pagedTokens.most then
      "limits.maxKvCacheCapacity is more than ${toString pagedTokens.most} tokens; lower it"
    else if l.maxBatchSize > poolPages.most / arithmetic.ceilDiv l.maxKvCacheCapacity page then
      "limits.maxBatchSize × limits.maxKvCacheCapacity is more than ${toString poolPages.most} "
      + "pages of ${toString page} tokens; lower one of them"
    else
      null;
in
rec {
  # What the engine takes of the GPU's memory; null where lock or table lack a fact.
  # plan :: facts // { weightBytes } -> { sm; memory; … }
  #   -> { maxInputLen; maxBatchSize; maxKvCacheCapacity; } -> set|null
  plan =
    facts: gpu: limits:
    let
      model = arithmetic.written facts;
    in
    if arithmetic.isComplete model gpu then memory model gpu limits else null;

  # The plan, or a refusal that names the tightest limit and the command that finds what would fit.
  # fits :: string -> facts // { weightBytes } -> { name; sm; memoryGB; … } -> limits -> set|null
  fits =
    function: model: gpu: limits:
    let
      estimate = plan model (requireMemory function model gpu) limits;
    in
    if countLimitError limits != null then
      throw (
        "${function}: ${countLimitError limits}. "
        + "TensorRT Edge-LLM's builder accepts no larger number."
      )
    else
      arithmetic.requireFit {
        inherit function gpu limits;
        kind = "edgellm";
        asked =
          "${toString limits.maxBatchSize} sequences of maxKvCacheCapacity take "
          + "${toString estimate.needTokens}, from the start";
      } estimate;
}
