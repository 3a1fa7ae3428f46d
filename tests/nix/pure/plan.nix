# Whether an engine fits its GPU. Figures are those of a hand calculation; the same cases in Python
# and hundreds more are in tests/python/plan/test_twin.py.
{ lib, check }:
let
  fails = import ../fails.nix;
  rtx3090 = check.gpus.find "f" "rtx-3090";
  planned = {
    layers = 4;
    heads = 8;
    kvHeads = 4;
    headSize = 32;
    hiddenSize = 128;
    intermediateSize = 512;
    vocabulary = 2048;
    context = 2048;
    dtype = "bfloat16";
    weightBytes = 2891312;
  };
  smallGpu = {
    name = "small";
    sm = 90;
    memory = 1000000000;
  };
in
{
  testRtxPlansCountEverySlotAndATiedHeadOnce = {
    expr =
      let
        limits = {
          maxBatchSize = 8;
          maxSeqLen = 2048;
          stepTokens = 16;
        };
        unsized = {
          name = "unsized";
          sm = 89;
          memoryGB = null;
        };
      in
      [
        (check.rtxPlan.plan planned smallGpu limits).needTokens
        (check.rtxPlan.plan planned smallGpu limits).weights
        (check.rtxPlan.plan (planned // { tiedEmbeddings = true; }) smallGpu limits).weights
        (check.rtxPlan.fits "f" planned smallGpu limits).fits
        (check.rtxPlan.fits "f" planned unsized limits)
        (fails (check.rtxPlan.fits "f" planned (smallGpu // { memory = 20000000; }) limits))
      ];
    expected = [
      16504
      2891312
      2367024
      true
      null
      true
    ];
  };
  testMemoryIsRequired = {
    expr =
      let
        facts = {
          layers = 1;
          heads = 1;
          kvHeads = 1;
          headSize = 1;
          hiddenSize = 1;
          intermediateSize = 1;
          vocabulary = 1;
          context = 1;
          dtype = "bfloat16";
          weightBytes = 1;
        };
        a16 = check.gpus.find "f" "a16";
      in
      [
        (fails (check.plan.requireMemory "f" facts a16))
        (fails (check.plan.requireMemory "f" { } a16))
        (check.plan.requireMemory "f" facts (check.gpus.find "f" "a16-16gb")).memory
      ];
    expected = [
      true
      false
      16000000000
    ];
  };
  testPlanMemoryOfGigabytes = {
    expr = check.plan.memoryOf { memoryGB = 24; };
    expected = 24000000000;
  };
  testPlanMemoryOfDriversReport = {
    expr = check.plan.memoryOf {
      memoryGB = 24;
      memoryMiB = 2;
    };
    expected = 2097152;
  };
  testPlanMemoryUnknown = {
    expr = check.plan.memoryOf { memoryGB = null; };
    expected = null;
  };
  testPlanWeightBytes = {
    expr = check.plan.weightBytes {
      "model-1.safetensors".size = 3;
      "model-2.safetensors".size = 4;
      "consolidated.safetensors".size = 7;
      "config.json".size = 100;
    };
    expected = 7;
  };
  testPlanKvCachePerToken = {
    # 2 (key, value) x 4 layers x 4 KV heads x 32 numbers x 2 bytes
    expr = (check.plan.plan planned smallGpu { }).kvToken;
    expected = 2048;
  };
  testPlanReplicatesKvHeads = {
    # 8 ranks share 4 KV heads: each holds one
    expr = (check.plan.plan planned smallGpu { tensorParallel = 8; }).kvToken;
    expected = 512;
  };
  testPlanSaysNothingWithoutFacts = {
    expr = check.plan.plan (builtins.removeAttrs planned [ "kvHeads" ]) smallGpu { };
    expected = null;
  };
  testPlanFits = {
    expr = (check.plan.fits "f" "tensorrt" planned smallGpu { }).fits;
    expected = true;
  };
  testPlanRefuses = {
    expr = fails (check.plan.fits "f" "tensorrt" planned (smallGpu // { memory = 1000000; }) { });
    expected = true;
  };
  # Kind rtx: a place for each token of each slot, and for the padding behind a last token.
  testRtxPlanCountsSlots = {
    expr =
      (check.rtxPlan.plan planned smallGpu {
        maxBatchSize = 2;
        maxSeqLen = 64;
        stepTokens = 8;
      }).needTokens;
    expected = 142;
  };
  testRtxPlanRefuses = {
    expr = map (maxSeqLen: fails (check.rtxPlan.fits "f" planned smallGpu {
      maxBatchSize = 2;
      inherit maxSeqLen;
      stepTokens = 8;
    })) [ 64 1000000 ];
    expected = [ false true ];
  };
  testEdgellmPlan =
    let
      model = {
        layers = 28;
        heads = 28;
        kvHeads = 4;
        headSize = 128;
        hiddenSize = 3584;
        intermediateSize = 18944;
        vocabulary = 152064;
        context = 32768;
        dtype = "bfloat16";
        weightBytes = 15231271888;
      };
      limits = {
        maxInputLen = 512;
        maxBatchSize = 2;
        maxKvCacheCapacity = 8192;
      };
    in
    {
      expr = [
        (check.edgellmPlan.plan model { sm = 86; memory = 24000000000; } limits).fits
        (check.edgellmPlan.plan model { sm = 86; memory = null; } limits)
        (check.edgellmPlan.fits "e" model rtx3090 limits).needTokens
        (fails (check.edgellmPlan.fits "e" model rtx3090 (limits // { maxBatchSize = 64; })))
        # Where products of 64 bits wrap, nothing fits.
        (map (l: fails (check.edgellmPlan.fits "e" model rtx3090 (limits // l))) [
          { maxBatchSize = 4611686018427387904; }
          { maxInputLen = 4611686018427387904; maxKvCacheCapacity = 4611686018427387904; }
          { maxKvCacheCapacity = 9223372036854775807; }
          { maxBatchSize = 2147483647; maxInputLen = 1; maxKvCacheCapacity = 1; }
        ])
        # Nor is there a plan to say so where the table does not tell the GPU's memory.
        (fails (check.edgellmPlan.fits "e" model (rtx3090 // { memoryGB = null; memoryMiB = null; }) (limits // { maxBatchSize = 2147483647; })))
      ];
      expected = [ true null 16384 true [ true true true true ] true ];
    };
}
