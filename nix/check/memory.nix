# The arithmetic of a rank's memory, from a lock's sizes and the limits of an engine:
# compute_memory of python/enginix/memory_plan/arithmetic.py again, because ranks, limits and the
# number format are chosen at evaluation. What would make an engine fit is found by `enginix plan`
# alone (docs/reference/memory-plan.md).
{ lib }:
let
  constants = lib.importJSON ../../python/enginix/data/memory_plan/memory_constants.json;
  formats = lib.importJSON ../../python/enginix/data/models/number_formats.json;
  inherit (formats) elementBytes;
  kvCacheBits = lib.filterAttrs (_: bits: bits != null) (
    builtins.mapAttrs (_: row: row.bits) formats.kvCache
  );
  max = a: b: if a > b then a else b;

  # The facts of a lock that the estimate needs.
  needed = [
    "layers"
    "heads"
    "kvHeads"
    "headSize"
    "hiddenSize"
    "intermediateSize"
    "vocabulary"
    "context"
    "dtype"
  ];

  workspace =
    m: l:
    let
      tp = l.tensorParallel;
      query = ceilDiv m.heads tp * m.headSize;
      keyValue = 2 * max 1 (m.kvHeads / tp) * m.headSize;
      widest = max (2 * query + keyValue) (3 * ceilDiv m.intermediateSize tp);
    in
    l.maxNumTokens * elementBytes.${m.dtype} * (3 * m.hiddenSize + widest)
    + l.maxBatchSize * 4 * (m.vocabulary + ceilDiv m.vocabulary tp);

  kvToken =
    m: l:
    let
      layers = ceilDiv m.layers l.pipelineParallel;
      kvHeads = max 1 (m.kvHeads / l.tensorParallel);
      kvCache = m.kvCacheQuantization or null;
      bits = if kvCache == null then elementBytes.${m.dtype} * 8 else kvCacheBits.${kvCache};
    in
    2 * layers * kvHeads * m.headSize * bits / 8;

  ceilDiv = a: b: (a + b - 1) / b;

  # Options of `enginix plan`.
  flagNames = {
    maxBatchSize = "--max-batch-size";
    maxInputLen = "--max-input-len";
    maxKvCacheCapacity = "--max-kv-cache-capacity";
    maxNumTokens = "--max-num-tokens";
    maxSeqLen = "--max-seq-len";
    pipelineParallel = "--pipeline-parallel";
    sequences = "--sequences";
    stepTokens = "--step-tokens";
    tensorParallel = "--tensor-parallel";
  };

  gib =
    bytes:
    let
      tenths = bytes * 10 / 1073741824;
    in
    "${toString (tenths / 10)}.${toString (lib.mod tenths 10)} GiB";
in
{
  inherit ceilDiv;
  fixed = builtins.mapAttrs (_: row: row.value) constants.defaults;

  # How far kvToken is known: planner.find_kv_certainty again. A lock of an older enginix has no
  # attentionWindow.
  kvTokenCertainty =
    m:
    let
      counted = constants.kvByHeads.architectures ++ constants.latent.architectures;
    in
    if !builtins.elem (m.architecture or null) counted then
      "estimate"
    else if m.attentionWindow or null == [ ] then
      "exact"
    else
      "upper bound";

  # cache: { block; percent; } of the KV cache.
  memory =
    cache: m: gpu: l:
    let
      ranks = l.tensorParallel * l.pipelineParallel;
      weights = ceilDiv m.weightBytes ranks;
      work = workspace m l;
      token = kvToken m l;
      pool = max 0 (gpu.memory - weights - work) * cache.percent / 100;
      tokens = pool / token / cache.block * cache.block;
      needTokens = l.sequences * (ceilDiv l.maxSeqLen cache.block * cache.block);
    in
    {
      inherit
        weights
        pool
        tokens
        needTokens
        ;
      total = gpu.memory;
      workspace = work;
      kvToken = token;
      fits = tokens >= needTokens;
      tightest =
        if weights > gpu.memory then
          "weights"
        else if weights + work > gpu.memory then
          "workspace"
        else
          "kvCache";
    };

  # A lock's facts as a checkpoint holds them: float32 is written as float16, as TensorRT-LLM and
  # Edge-LLM do.
  written =
    facts:
    if facts.dtype or null == "float32" then
      facts
      // {
        dtype = "float16";
        weightBytes = facts.weightBytes or 0 / 2;
      }
    else
      facts;

  # Whether facts and GPU suffice for an estimate.
  isComplete =
    model: gpu:
    builtins.all (name: model.${name} or null != null) needed
    && !(builtins.elem (model.architecture or null) constants.kvNotByHeads.architectures)
    && elementBytes ? ${model.dtype}
    && (model.kvCacheQuantization or null == null || kvCacheBits ? ${model.kvCacheQuantization})
    && model.weightBytes or 0 > 0
    && gpu.memory or null != null;

  # The estimate, or a refusal that names what runs out, and the command that finds what would fit.
  # requireFit :: { function; kind; gpu; asked; limits; } -> estimate|null -> estimate|null
  requireFit =
    {
      function,
      kind,
      gpu,
      # What is asked of the KV cache, after its room in tokens.
      asked,
      # Limits by their names in Nix, as the engine's author passed them.
      limits,
    }:
    estimate:
    let
      used =
        "weights (${gib estimate.weights}) and workspace (about ${gib estimate.workspace}) "
        + "of one rank";
      reasons = {
        weights = "the weights of one rank alone take ${gib estimate.weights}";
        workspace = "${used} take it all";
        kvCache =
          "after ${used} the KV cache has room for ${toString estimate.tokens} tokens, "
          + "and ${asked}";
      };
      reason = reasons.${estimate.tightest};
      flags = lib.mapAttrsToList (name: value: "${flagNames.${name}} ${toString value}") limits;
      memory = lib.optional (
        gpu.memoryMiB or null == null && gpu.memoryGB or null != null
      ) "--memory ${toString gpu.memoryGB}";
      command = lib.concatStringsSep " " (
        [ "enginix plan MODEL --kind ${kind} --target ${gpu.name}" ] ++ memory ++ flags
      );
    in
    if estimate == null || estimate.fits then
      estimate
    else
      throw ''
        ${function}: it does not fit ${gpu.name} (${gib estimate.total}): ${reason}.
        This command prints what would fit, the smallest change first. MODEL is the model's lock
        or directory.
          ${command}'';
}
