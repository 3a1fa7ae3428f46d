# Whether an engine fits its GPU, at evaluation, from a lock's facts.
# tests/python/plan/test_twin.py compares it with `enginix plan`;
# docs/reference/memory-plan.md says what is exact and what an estimate.
{ lib, ... }:
let
  arithmetic = import ./memory.nix { inherit lib; };
  inherit (arithmetic) fixed;
  cache = {
    block = fixed.tokensPerBlock;
    percent = fixed.kvPercent;
  };
in
rec {
  # Bytes of a row of gpus.json: as a driver reports them where that is known, else NVIDIA's
  # gigabytes of 10^9; null for unknown.
  # memoryOf :: { memoryGB; memoryMiB ? null; … } -> int|null
  memoryOf =
    row:
    if row.memoryMiB or null != null then
      row.memoryMiB * 1048576
    else if row.memoryGB or null != null then
      row.memoryGB * 1000000000
    else
      null;

  # A GPU with the bytes of its memory; refuses a GPU of unknown memory, without which nothing could
  # be checked, where the model's facts suffice for a plan.
  # requireMemory :: string -> facts -> { name; sm; memoryGB; … } -> { memory; … }
  requireMemory =
    function: facts: gpu:
    let
      sized = { memory = memoryOf gpu; } // gpu;
      isPlannable = arithmetic.isComplete (arithmetic.written facts) (gpu // { memory = 0; });
      isNamed = gpu.part or "other" != "other";
      way = if isNamed then "gpu = \"${gpu.name}\"" else "sm = ${toString gpu.sm}";
    in
    if sized.memory == null && isPlannable then
      throw (
        "${function}: the memory of target \"${gpu.name}\" is not known, so nothing says whether "
        + "the model fits. Pass it in gigabytes: target = { ${way}; memoryGB = 16; }."
      )
    else
      sized;

  # Bytes of the weights that a lock's files list: those named model*.safetensors, as transformers
  # reads them; without such a file, every safetensors file beside config.json.
  # weightBytes :: { path = { size; … }; } -> int
  weightBytes =
    files:
    let
      isTop = path: builtins.match "[^/]*[.]safetensors" path != null;
      top = builtins.filter isTop (builtins.attrNames files);
      modelFiles = builtins.filter (lib.hasPrefix "model") top;
    in
    builtins.foldl' (sum: path: sum + files.${path}.size) 0 (
      if modelFiles == [ ] then top else modelFiles
    );

  # The memory of the heaviest rank; null where the lock or the table of GPUs lacks a fact.
  # Weights are the mean over the ranks, which the heaviest is never below: what does not fit here
  # does not fit.
  # plan :: facts // { weightBytes } -> { sm; memory; … } -> limits -> set|null
  plan =
    facts: gpu: limits:
    let
      model = arithmetic.written facts;
      asked = {
        inherit (fixed) maxBatchSize maxNumTokens;
        maxSeqLen = model.context;
        sequences = 1;
        tensorParallel = 1;
        pipelineParallel = 1;
      }
      // lib.filterAttrs (_: v: v != null) limits;
      # As trtllm-build clips it: a step never takes more than all sequences hold together.
      most = asked.maxBatchSize * asked.maxSeqLen;
      l = asked // {
        maxNumTokens = if asked.maxNumTokens < most then asked.maxNumTokens else most;
      };
      estimate = arithmetic.memory cache model gpu l;
    in
    if !arithmetic.isComplete model gpu then
      null
    else
      estimate
      // {
        # The mean of the ranks is a lower bound of the heaviest; the estimates nothing measured.
        certainty = {
          weights = "lower bound";
          kvToken = arithmetic.kvTokenCertainty model;
          workspace = "estimate";
          pool = "estimate";
        };
      };

  # The plan, or a refusal that names the tightest limit and the command that finds what would fit.
  # fits :: string -> kind -> facts // { weightBytes } -> { name; sm; memoryGB; … } -> limits
  #   -> set|null
  fits =
    function: kind: model: gpu: limits:
    let
      estimate = plan model (requireMemory function model gpu) limits;
    in
    arithmetic.requireFit {
      inherit function kind gpu;
      limits = lib.filterAttrs (_: v: v != null) limits;
      asked =
        "${toString estimate.needTokens} are asked for"
        + lib.optionalString (model.attentionWindow or [ ] != [ ]) (
          " (an upper bound: layers with a window are counted in full)"
        );
    } estimate;
}
