# Whether an engine of TensorRT for RTX fits a GPU, at evaluation:
# python/enginix/kinds/rtx_planning/memory_plan.py again.
#
# One GPU, static sizes: the KV cache has a place for each token of each slot, from the start.
# docs/reference/memory-plan.md says what is exact.
{ lib, ... }@check:
let
  table = lib.importJSON ../../python/enginix/data/rtx/rtx.json;
  arithmetic = import ./memory.nix { inherit lib; };
  inherit (arithmetic)
    formats
    bitsPer128
    shortest
    halvings
    known
    gib
    ;
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
  memory = m: gpu: l: arithmetic.memory cache m gpu (asSharedLimits l);

  # A plan holds a tied head once; a lock does not tell whether the files hold it twice.
  withoutTiedHead =
    m:
    let
      head = m.vocabulary * m.hiddenSize * formats.elementBytes.${m.dtype};
    in
    m
    // lib.optionalAttrs (m.tiedEmbeddings or false) {
      weightBytes = arithmetic.max 0 (m.weightBytes - head);
    };

  lighter =
    m: gpu:
    let
      from = known (m.quantization or null);
      rows = table.formats.taken;
      usable =
        name:
        builtins.elem gpu.sm (rows.${name} or [ ]) && bitsPer128.${name} < bitsPer128.${from};
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
      shorter = (memory m gpu l).tokens / l.maxBatchSize - (l.stepTokens - 1);
      lighterFormats = lighter m gpu;
      single =
        first "maxBatchSize" (halvings 1 l.maxBatchSize)
        ++ first "maxSeqLen" (
          if shortest <= shorter && shorter < l.maxSeqLen then [ shorter ] else [ ]
        )
        ++ first "quantization" lighterFormats;
      combined = map (name: {
        maxBatchSize = 1;
        quantization = name;
      }) lighterFormats;
    in
    arithmetic.smallest fitsWith single combined;

  changeTexts = {
    quantization = name: "the model quantized to ${name}";
    maxBatchSize = n: "limits.maxBatchSize = ${toString n}";
    maxSeqLen = n: "limits.maxSeqLen = ${toString n}";
  };
  describeChange =
    change:
    lib.concatMapStringsSep " with " (n: changeTexts.${n} change.${n}) (builtins.attrNames change);
in
rec {
  # What the engine takes of the GPU's memory and what would make it fit; null where lock or table
  # lack a fact.
  # plan :: facts // { weightBytes } -> { sm; memory; … }
  #   -> { maxBatchSize; maxSeqLen; stepTokens; } -> set|null
  plan =
    facts: gpu: limits:
    let
      written = arithmetic.written facts;
      model = withoutTiedHead written;
      estimate = memory model gpu limits;
    in
    if !arithmetic.isComplete written gpu then
      null
    else
      estimate // { changes = if estimate.fits then [ ] else changes model gpu limits; };

  # The plan, or a refusal that names the tightest limit and the smallest change; null for a GPU of
  # unknown memory, which an engine for several GPUs may have among them.
  # fits :: string -> facts // { weightBytes } -> { name; sm; memoryGB; … } -> limits -> set|null
  fits =
    function: facts: gpu: limits:
    let
      estimate = plan facts ({ memory = check.plan.memoryOf gpu; } // gpu) limits;
      reason = reasons.${estimate.tightest};
      reasons = {
        weights = "the weights alone take ${gib estimate.weights}";
        workspace =
          "weights (${gib estimate.weights}) and workspace (about ${gib estimate.workspace}) "
          + "take it all";
        kvCache =
          "after weights (${gib estimate.weights}) and workspace (about ${gib estimate.workspace}) "
          + "the KV cache has room for ${toString estimate.tokens} tokens, and "
          + "${toString limits.maxBatchSize} slots take ${toString estimate.needTokens}, from the "
          + "start";
      };
      changeList = map describeChange estimate.changes;
      others = builtins.tail changeList;
      ways =
        if estimate.changes == [ ] then
          "No single limit or format makes it fit, and this kind runs on one GPU; leave it out of "
          + "targets, or use kind = \"tensorrt\" or \"llmapi\" on several."
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
        `enginix plan --kind rtx` prints every figure, from the weights' headers.'';
}
