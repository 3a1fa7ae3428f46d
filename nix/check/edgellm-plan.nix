# Whether a TensorRT Edge-LLM engine fits its GPU, at evaluation:
# python/enginix/kinds/edgellm/memory_plan.py again.
#
# One GPU, float16, no free parameters: the wheel's builder fixes the KV cache at maxBatchSize
# sequences of maxKvCacheCapacity tokens, in pages (data/edgellm/edgellm.json, memory).
# docs/reference/memory-plan.md says what is exact.
{ lib, plan, ... }:
let
  inherit (plan) requireMemory;
  table = lib.importJSON ../../python/enginix/data/edgellm/edgellm.json;
  arithmetic = import ./memory.nix { inherit lib; };
  inherit (arithmetic)
    formats
    bitsPer128
    shortest
    fewestTokens
    max
    min
    halvings
    known
    kvBits
    gib
    ;

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

  # Prompt and batch halved together, down to the least of both.
  steps =
    input: batch:
    let
      next = {
        maxInputLen = max (min input fewestTokens) (input / 2);
        maxBatchSize = max 1 (batch / 2);
      };
    in
    if input > fewestTokens || batch > 1 then
      [ next ] ++ steps next.maxInputLen next.maxBatchSize
    else
      [ ];

  lighter =
    m: gpu:
    let
      from = known (m.quantization or null);
      usable =
        name:
        let
          row = formats.algorithms.${name};
        in
        row.edgellm != null && gpu.sm >= row.minSm && bitsPer128.${name} < bitsPer128.${from};
    in
    if bitsPer128 ? ${from} then builtins.filter usable formats.lighter else [ ];

  changes =
    m: gpu: l:
    let
      fitsWith = change: (memory m gpu (l // change)).fits;
      first =
        name: values:
        let
          fitting = builtins.filter (v: fitsWith { ${name} = v; }) values;
        in
        if fitting == [ ] then [ ] else [ { ${name} = builtins.head fitting; } ];
      shorter = (memory m gpu l).tokens / l.maxBatchSize / page * page;
      smallKv = if kvBits m l > 8 then { kvBits = 8; } else { };
      lighterFormats = lighter m gpu;
      single =
        first "maxInputLen" (halvings fewestTokens l.maxInputLen)
        ++ first "maxBatchSize" (halvings 1 l.maxBatchSize)
        ++ first "kvBits" (if smallKv == { } then [ ] else [ 8 ])
        ++ first "maxKvCacheCapacity" (
          if max shortest l.maxInputLen <= shorter && shorter < l.maxKvCacheCapacity then
            [ shorter ]
          else
            [ ]
        )
        ++ first "quantization" lighterFormats;
      together = steps l.maxInputLen l.maxBatchSize;
      combined =
        together
        ++ (if smallKv == { } then [ ] else map (s: s // smallKv) together)
        ++ map (name: smallKv // { quantization = name; }) lighterFormats;
    in
    arithmetic.smallest fitsWith single combined;

  changeTexts = {
    kvBits = bits: "a model with an FP8 KV cache";
    quantization = name: "the model quantized to ${name}";
    maxInputLen = n: "limits.maxInputLen = ${toString n}";
    maxBatchSize = n: "limits.maxBatchSize = ${toString n}";
    maxKvCacheCapacity = n: "limits.maxKvCacheCapacity = ${toString n}";
  };
  describeChange =
    change:
    lib.concatMapStringsSep " with " (n: changeTexts.${n} change.${n}) (builtins.attrNames change);
in
rec {
  # What the engine takes of the GPU's memory and what would make it fit; null where lock or table
  # lack a fact.
  # plan :: facts // { weightBytes } -> { sm; memory; … }
  #   -> { maxInputLen; maxBatchSize; maxKvCacheCapacity; } -> set|null
  plan =
    facts: gpu: limits:
    let
      model = arithmetic.written facts;
      estimate = memory model gpu limits;
    in
    if !arithmetic.isComplete model gpu then
      null
    else
      estimate // { changes = if estimate.fits then [ ] else changes model gpu limits; };

  # The plan, or a refusal that names the tightest limit and the smallest change.
  # fits :: string -> facts // { weightBytes } -> { name; sm; memoryGB; … } -> limits -> set|null
  fits =
    function: model: gpu: limits:
    let
      estimate = plan model (requireMemory function model gpu) limits;
      reasons = {
        weights = "the weights alone take ${gib estimate.weights}";
        workspace =
          "weights (${gib estimate.weights}) and workspace (about ${gib estimate.workspace}) "
          + "take it all";
        kvCache =
          "after weights (${gib estimate.weights}) and workspace (about ${gib estimate.workspace}) "
          + "the KV cache has room for ${toString estimate.tokens} tokens, and "
          + "${toString limits.maxBatchSize} sequences of maxKvCacheCapacity take "
          + "${toString estimate.needTokens}, from the start";
      };
      reason = reasons.${estimate.tightest};
      changeList = map describeChange estimate.changes;
      others = builtins.tail changeList;
      ways =
        if estimate.changes == [ ] then
          "No single limit or format makes it fit, and this kind runs on one GPU; use a GPU with "
          + "more memory, or kind = \"tensorrt\" or \"llmapi\" on several."
        else
          "Smallest change that fits: ${builtins.head changeList}."
          + lib.optionalString (others != [ ]) " Others: ${lib.concatStringsSep "; " others}.";
    in
    if countLimitError limits != null then
      throw (
        "${function}: ${countLimitError limits}. "
        + "TensorRT Edge-LLM's builder accepts no larger number."
      )
    else if estimate == null || estimate.fits then
      estimate
    else
      throw ''
        ${function}: it does not fit ${gpu.name} (${gib estimate.total}): ${reason}.
        ${ways}
        `enginix plan --kind edgellm` prints every figure, from the weights' headers.'';
}
