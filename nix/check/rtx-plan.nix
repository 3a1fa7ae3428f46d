# Whether an engine of TensorRT for RTX fits a GPU, at evaluation.
#
# One GPU, static sizes: the KV cache has a place for each token of each slot, from the start.
# docs/reference/memory-plan.md says what is exact.
{ lib, ... }@check:
let
  inherit (lib.importJSON ../../python/enginix/data/models/number_formats.json) elementBytes;
  arithmetic = import ./memory.nix { inherit lib; };
  cache = {
    block = 1;
    percent = 100;
  };

  # Limits as the shared arithmetic names them.
  asSharedLimits =
    l:
    l
    // {
      maxNumTokens = l.maxBatchSize * l.stepTokens;
      # Padding is written behind a last token.
      maxSeqLen = l.maxSeqLen + l.stepTokens - 1;
      sequences = l.maxBatchSize;
      tensorParallel = 1;
      pipelineParallel = 1;
    };

  # A plan holds a tied head once; a lock does not tell whether the files hold it twice.
  withoutTiedHead =
    m:
    let
      rest = m.weightBytes - m.vocabulary * m.hiddenSize * elementBytes.${m.dtype};
    in
    if m.tiedEmbeddings or false then m // { weightBytes = if rest > 0 then rest else 0; } else m;
in
rec {
  # What the engine takes of the GPU's memory; null where lock or table lack a fact.
  # plan :: facts // { weightBytes } -> { sm; memory; … }
  #   -> { maxBatchSize; maxSeqLen; stepTokens; } -> set|null
  plan =
    facts: gpu: limits:
    let
      model = arithmetic.written facts;
    in
    if arithmetic.isComplete model gpu then
      arithmetic.memory cache (withoutTiedHead model) gpu (asSharedLimits limits)
    else
      null;

  # The plan, or a refusal that names the tightest limit and the command that finds what would fit;
  # null for a GPU of unknown memory, which an engine for several GPUs may have among them.
  # fits :: string -> facts // { weightBytes } -> { name; sm; memoryGB; … } -> limits -> set|null
  fits =
    function: facts: gpu: limits:
    let
      estimate = plan facts ({ memory = check.plan.memoryOf gpu; } // gpu) limits;
    in
    arithmetic.requireFit {
      inherit function gpu limits;
      kind = "rtx";
      asked =
        "${toString limits.maxBatchSize} slots take ${toString estimate.needTokens}, from the start";
    } estimate;
}
