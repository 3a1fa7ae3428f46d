# The arithmetic of a rank's memory, which the plans of all kinds share:
# python/enginix/memory_plan/arithmetic.py again.
{ lib }:
let
  constants = lib.importJSON ../../python/enginix/data/memory_plan/memory_constants.json;
  fixed = builtins.mapAttrs (_: row: row.value) constants.defaults;
  formats = lib.importJSON ../../python/enginix/data/models/number_formats.json;
  inherit (formats) elementBytes;
in
rec {
  inherit fixed formats;

  # Bits of 128 consecutive weights and of a number of the KV cache, for each format where they are
  # known.
  whereKnown = lib.filterAttrs (_: bits: bits != null);
  bitsPer128 = whereKnown (builtins.mapAttrs (_: row: row.bitsPer128) formats.algorithms);
  kvCacheBits = whereKnown (builtins.mapAttrs (_: row: row.bits) formats.kvCache);

  shortest = 1024;
  fewestTokens = 512;

  max = a: b: if a > b then a else b;
  min = a: b: if a < b then a else b;
  ceilDiv = a: b: (a + b - 1) / b;
  range = from: to: builtins.genList (i: from + i) (max 0 (to - from + 1));
  halvings =
    least: value:
    let
      half = value / 2;
    in
    if half < least then [ ] else [ half ] ++ halvings least half;

  # The offered changes: the single ones that fit; without one, the first combined one that fits.
  # smallest :: (change -> bool) -> [ change ] -> [ change ] -> [ change ]
  smallest =
    fits: single: combined:
    let
      fitting = builtins.filter fits combined;
    in
    if single != [ ] then
      single
    else if fitting == [ ] then
      [ ]
    else
      [ (builtins.head fitting) ];

  # A step's tokens and batch halved together, down to the least of both.
  steps =
    tokens: batch:
    let
      next = {
        maxNumTokens = max (min tokens fewestTokens) (tokens / 2);
        maxBatchSize = max 1 (batch / 2);
      };
    in
    if tokens > fewestTokens || batch > 1 then
      [ next ] ++ steps next.maxNumTokens next.maxBatchSize
    else
      [ ];

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

  known = name: if name == null then "NO_QUANT" else name;

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

  kvBits =
    m: l:
    if l.kvBits or null != null then
      l.kvBits
    else if m.kvCacheQuantization or null == null then
      elementBytes.${m.dtype} * 8
    else
      kvCacheBits.${m.kvCacheQuantization};

  kvToken =
    m: l:
    let
      layers = ceilDiv m.layers l.pipelineParallel;
      kvHeads = max 1 (m.kvHeads / l.tensorParallel);
    in
    2 * layers * kvHeads * m.headSize * kvBits m l / 8;

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

  requantized =
    m: to:
    let
      from = known (m.quantization or null);
      copies = if m.tiedEmbeddings or false then 1 else 2;
      kept = min m.weightBytes (copies * m.vocabulary * m.hiddenSize * elementBytes.${m.dtype});
    in
    if to == null || !(bitsPer128 ? ${from}) then
      m.weightBytes
    else
      kept + ceilDiv ((m.weightBytes - kept) * bitsPer128.${to}) bitsPer128.${from};

  # cache: { block; percent; } of the KV cache.
  memory =
    cache: m: gpu: l:
    let
      ranks = l.tensorParallel * l.pipelineParallel;
      weights = ceilDiv (requantized m (l.quantization or null)) ranks;
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

  gib =
    bytes:
    let
      tenths = bytes * 10 / 1073741824;
    in
    "${toString (tenths / 10)}.${toString (lib.mod tenths 10)} GiB";
}
