# Whether an engine fits its GPU, at evaluation: python/enginix/memory_plan/arithmetic.py again,
# over a lock's facts. tests/python/plan/test_twin.py holds the two together;
# docs/reference/memory-plan.md says what is exact and what an estimate.
{ lib, ... }:
let
  arithmetic = import ./memory.nix { inherit lib; };
  inherit (arithmetic)
    fixed
    formats
    bitsPer128
    shortest
    fewestTokens
    ceilDiv
    max
    range
    halvings
    steps
    known
    kvBits
    gib
    ;

  cache = {
    block = fixed.tokensPerBlock;
    percent = fixed.kvPercent;
  };
  memory = arithmetic.memory cache;
  blocks = tokens: tokens / cache.block * cache.block;
  blocksUp = tokens: ceilDiv tokens cache.block * cache.block;

  divides =
    m: tp:
    lib.mod m.heads tp == 0
    && (lib.mod m.kvHeads tp == 0 || lib.mod tp m.kvHeads == 0)
    && lib.mod m.intermediateSize tp == 0;

  lighter =
    m: gpu:
    let
      from = known (m.quantization or null);
      usable =
        name:
        let
          row = formats.algorithms.${name};
          least = if row.minSm == null then 0 else row.minSm;
          refused =
            row.refusedSm != null
            && builtins.elemAt row.refusedSm 0 <= gpu.sm
            && gpu.sm < builtins.elemAt row.refusedSm 1;
        in
        gpu.sm >= least && !refused && bitsPer128.${name} < bitsPer128.${from};
    in
    if bitsPer128 ? ${from} then builtins.filter usable formats.lighter else [ ];

  changes =
    m: gpu: l:
    let
      fitsWith = change: (memory m gpu (l // change)).fits;
      # The first value of one limit that fits, as a list of at most one change.
      first =
        name: values:
        let
          fitting = builtins.filter (v: fitsWith { ${name} = v; }) values;
        in
        if fitting == [ ] then [ ] else [ { ${name} = builtins.head fitting; } ];
      cacheTokens = (memory m gpu l).tokens;
      most = cacheTokens / blocksUp l.maxSeqLen;
      shorter = blocks (cacheTokens / l.sequences);
      wider = builtins.filter (divides m) (range (l.tensorParallel + 1) fixed.gpusPerNode);
      lighterFormats = if l.quantization or null == null then lighter m gpu else [ ];
      smallKv = if kvBits m l > 8 then { kvBits = 8; } else { };
      single =
        first "maxNumTokens" (halvings (max fewestTokens l.maxBatchSize) l.maxNumTokens)
        ++ first "maxBatchSize" (halvings 1 l.maxBatchSize)
        ++ first "kvBits" (if smallKv == { } then [ ] else [ 8 ])
        ++ first "sequences" (if 1 <= most && most < l.sequences then [ most ] else [ ])
        ++ first "maxSeqLen" (
          if shortest <= shorter && shorter < l.maxSeqLen then [ shorter ] else [ ]
        )
        ++ first "tensorParallel" wider
        ++ first "quantization" lighterFormats;
      together = steps l.maxNumTokens l.maxBatchSize;
      wide = builtins.concatMap (
        tp:
        map (
          name:
          smallKv
          // (if tp == l.tensorParallel then { } else { tensorParallel = tp; })
          // (if name == null then { } else { quantization = name; })
        ) ([ null ] ++ lighterFormats)
      ) ([ l.tensorParallel ] ++ wider);
      combined =
        together ++ (if smallKv == { } then [ ] else map (s: s // smallKv) together) ++ wide;
    in
    arithmetic.smallest (c: c != { } && fitsWith c) single combined;

  changeTexts = {
    kvBits = bits: "a model with an FP8 KV cache";
    quantization = name: "the model quantized to ${name}";
    tensorParallel = n: "tensorParallel = ${toString n} (on ${toString n} GPUs)";
    sequences = n: "sequences = ${toString n}";
    maxSeqLen = n: "limits.maxSeqLen = ${toString n}";
    maxBatchSize = n: "limits.maxBatchSize = ${toString n}";
    maxNumTokens = n: "limits.maxNumTokens = ${toString n}";
  };
  describeChange =
    change:
    lib.concatMapStringsSep " with " (n: changeTexts.${n} change.${n}) (builtins.attrNames change);
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

  # The memory of the heaviest rank, and what would make it fit; null where the lock or the table of
  # GPUs does not tell enough. Weights are the mean over the ranks, which the heaviest is never
  # below: what does not fit here does not fit.
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
      estimate = memory model gpu l;
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
        changes = if estimate.fits then [ ] else changes model gpu l;
      };

  # The plan, or a refusal that names the tightest limit and the smallest change.
  # fits :: string -> facts // { weightBytes } -> { name; sm; memoryGB; … } -> limits -> set|null
  fits =
    function: model: gpu: limits:
    let
      estimate = plan model (requireMemory function model gpu) limits;
      reasons = {
        weights = "the weights of one rank alone take ${gib estimate.weights}";
        workspace =
          "weights (${gib estimate.weights}) and workspace (about ${gib estimate.workspace}) of "
          + "one rank take it all";
        kvCache =
          "after weights (${gib estimate.weights}) and workspace (about ${gib estimate.workspace}) "
          + "the KV cache has room for ${toString estimate.tokens} tokens, and "
          + "${toString estimate.needTokens} are asked for"
          + lib.optionalString (model.attentionWindow or [ ] != [ ]) (
            " (an upper bound: layers with a window are counted in full)"
          );
      };
      reason = reasons.${estimate.tightest};
      changeList = map describeChange estimate.changes;
      others = builtins.tail changeList;
      ways =
        if estimate.changes == [ ] then
          "No single limit, format or number of these GPUs up to ${toString fixed.gpusPerNode} "
          + "makes it fit; use a GPU with more memory, or a smaller model."
        else
          "Smallest change that fits: ${builtins.head changeList}."
          + lib.optionalString (others != [ ]) " Others: ${lib.concatStringsSep "; " others}.";
    in
    if estimate == null || estimate.fits then
      estimate
    else
      throw ''
        ${function}: it does not fit ${gpu.name} (${gib estimate.total}): ${reason}.
        ${ways}
        `enginix plan` prints every figure, exactly, from the weights' headers.'';
}
