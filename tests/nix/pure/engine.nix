# Evaluation tests of engines: quantization, limits, options, runtimes. Each check is shown accepting and refusing.
{ lib, check }:
let
  fails = import ../fails.nix;
  sha = lib.concatStringsSep "" (builtins.genList (_: "a") 64);
  read = name: lib.importJSON (../../../python/enginix/data + "/${name}.json");
  support = read "runtime/engine_support";
  formats = read "models/number_formats";
  table = read "tensorrt/build_options";
  llmArgs = read "llmapi/llm_args";
  inherit (read "runtime/runtimes") runtimes;
  inherit (read "machine/gpus") gpus;
  gpu = name: gpus.${name} // { inherit name; };
  accepted = algorithm: name: !fails (check.target.quantization "e" null algorithm (gpu name));

  facts = {
    quantization = null;
    kvCache = null;
    sm = 90;
    architecture = "LlamaForCausalLM";
    engineClass = "LLaMAForCausalLM";
    tensorParallel = 1;
  };
  resolve = f: check.options.resolve "e" "trtllm-1.2.1" (facts // f);
  throughput = (check.options.profile "e" "throughput").options;
  limits = check.limits.resolve "e";
  one = {
    tensorParallel = 1;
    pipelineParallel = 1;
    expertParallel = 1;
  };
  run = check.engine.runtime "e" runtimes;
  run' = runtime: kind: check.engine.runtime "e" (check.runtime.rows runtime) kind asked;
  asked = {
    target = "h200";
    limits = { };
  };

  # The table again, by hand, for every GPU: what the issue asks for.
  rule =
    algorithm: sm:
    # No code for Turing and older, Jetson, and Rubin.
    if !builtins.elem sm [ 80 86 89 90 100 103 120 121 ] then
      false
    else if builtins.elem algorithm [ "FP8" ] then
      sm >= 89
    else if algorithm == "NVFP4" then
      sm >= 100
    else if builtins.elem algorithm [ "W8A16" "W4A16" "W4A16_AWQ" "W4A16_GPTQ" "W8A16_GPTQ" "W8A8_SQ_PER_CHANNEL" ] then
      sm >= 80 && !(sm >= 100 && sm < 120)
    else
      false;
  cells = builtins.concatMap (
    algorithm: map (name: { inherit algorithm name; }) (builtins.attrNames gpus)
  ) [ "FP8" "NVFP4" "W8A16" "W4A16" "W4A16_AWQ" "W4A16_GPTQ" "W8A16_GPTQ" "W8A8_SQ_PER_CHANNEL" "FP8_BLOCK_SCALES" ];
in
{
  testEveryCellAsTheRuleSays = {
    expr = builtins.filter (c: accepted c.algorithm c.name != rule c.algorithm gpus.${c.name}.sm) cells;
    expected = [ ];
  };
  testEveryRowHasSources = {
    expr = builtins.filter (
      row: row.sources == [ ] || !builtins.all (s: (support.sources // formats.sources) ? ${s}) row.sources
    ) (
      builtins.attrValues formats.algorithms
      ++ builtins.attrValues formats.kvCache
      ++ support.warnings
    );
    expected = [ ];
  };
  testEveryOptionHasASource = {
    expr = builtins.filter (row: !(table.sources ? ${row.source})) (
      builtins.attrValues table.options ++ builtins.attrValues table.removed ++ builtins.attrValues table.limits ++ table.rules
    );
    expected = [ ];
  };
  testEveryRuleNamesAnOption = {
    expr = builtins.filter (
      r: !builtins.all (o: table.options ? ${o}) ([ r.option ] ++ builtins.attrNames (r.needsOption or { }))
    ) table.rules;
    expected = [ ];
  };
  testEveryGpuAndRuntimeHasASource = {
    expr = builtins.filter (row: !(row ? source)) (builtins.attrValues gpus ++ builtins.attrValues runtimes);
    expected = [ ];
  };
  # gpus.json says what a part computes with, number_formats.json from which SM on: one truth.
  testFormatsOfGpusAgreeWithTheSms = {
    expr = builtins.concatMap (
      name:
      let
        row = gpus.${name};
        has = algorithm: builtins.all (f: builtins.elem f row.formats) algorithm.needs;
        enough = algorithm: algorithm.minSm == null || row.sm >= algorithm.minSm;
      in
      builtins.filter (a: has formats.algorithms.${a} != enough formats.algorithms.${a}) (
        builtins.filter (a: formats.algorithms.${a}.needs != [ ]) (builtins.filter (a: formats.algorithms.${a}.engine) (builtins.attrNames formats.algorithms))
      )
      ++ builtins.filter (f: !(formats.gpuFormats ? ${f})) row.formats
    ) (builtins.attrNames gpus);
    expected = [ ];
  };
  testFormatsHaveSourcesAndEveryPartIsThere = {
    expr = [
      (builtins.attrNames (builtins.listToAttrs (map (g: lib.nameValuePair g.part null) (builtins.attrValues gpus))))
      (builtins.length (builtins.attrNames (read "machine/gpus").formatSources) > 0)
      (builtins.filter (g: g.formats == [ ]) (builtins.attrValues gpus))
    ];
    expected = [
      [ "data-centre" "geforce" "grace" "jetson" "workstation" ]
      true
      [ ]
    ];
  };
  testComputesAccepts = {
    expr = map (f: check.target.computes "e" f (gpu "h200")) [ null "FP8" "FP8_BLOCK_SCALES" "W4A16_AWQ" "unheard of" ];
    expected = [ null "FP8" "FP8_BLOCK_SCALES" "W4A16_AWQ" "unheard of" ];
  };
  testComputesRefuses = {
    expr = map fails [
      (check.target.computes "e" "NVFP4" (gpu "a100-80gb"))
      (check.target.computes "e" "FP8" (gpu "a100-80gb"))
      # By Marlin kernels (check.target.fallback).
      (check.target.computes "e" "NVFP4" (gpu "h200"))
    ];
    expected = [ true true false ];
  };
  # A format that a part lacks is refused, whatever its SM says.
  testFormatThatTheGpuLacks = {
    expr = map (formats: fails (check.target.quantization "e" null "FP8" { name = "x"; sm = 90; inherit formats; })) [
      [ "BF16" "FP8" ]
      [ "BF16" "INT8" ]
    ];
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
        (check.edgellmPlan.fits "e" model (gpu "rtx-3090") limits).needTokens
        (fails (check.edgellmPlan.fits "e" model (gpu "rtx-3090") (limits // { maxBatchSize = 64; })))
        # Where products of 64 bits wrap, nothing fits.
        (map (l: fails (check.edgellmPlan.fits "e" model (gpu "rtx-3090") (limits // l))) [
          { maxBatchSize = 4611686018427387904; }
          { maxInputLen = 4611686018427387904; maxKvCacheCapacity = 4611686018427387904; }
          { maxKvCacheCapacity = 9223372036854775807; }
          { maxBatchSize = 2147483647; maxInputLen = 1; maxKvCacheCapacity = 1; }
        ])
        # Nor is there a plan to say so where the table does not tell the GPU's memory.
        (fails (check.edgellmPlan.fits "e" model ((gpu "rtx-3090") // { memoryGB = null; memoryMiB = null; }) (limits // { maxBatchSize = 2147483647; })))
      ];
      expected = [ true null 16384 true [ true true true true ] true ];
    };
  testUnverifiedHashesSaySo = {
    expr = builtins.filter (h: h.status != "unverified" && h.digest == null) (
      builtins.concatMap (r: builtins.concatMap (i: builtins.attrValues i.hashes) (builtins.attrValues (r.images or { }))) (
        builtins.attrValues runtimes
      )
    );
    expected = [ ];
  };

  testBlockFp8Never = {
    expr = map (accepted "FP8_BLOCK_SCALES") [ "h200" "b200" "rtx-pro-6000" ];
    expected = [ false false false ];
  };
  testUnknownQuantization = {
    expr = fails (check.target.quantizationBy { architecture = null; format = f: f; artefacts = "Models"; } "e" "FP9" (gpu "h200"));
    expected = true;
  };
  testEnginesNeedAmpere = {
    expr = fails (check.target.quantization "e" null null { name = "t4"; sm = 75; });
    expected = true;
  };
  testKvCacheAccepts = {
    expr = map (f: check.target.kvCache "e" null f (gpu "h200")) [ null "FP8" "INT8" ];
    expected = [ null "FP8" "INT8" ];
  };
  testInt8KvCacheRefusedOnBlackwell = {
    expr = fails (check.target.kvCache "e" null "INT8" (gpu "b200"));
    expected = true;
  };
  testNvfp4KvCacheRefused = {
    expr = fails (check.target.kvCache "e" null "NVFP4" (gpu "b200"));
    expected = true;
  };
  testArchitectureOfTheEnginePath = {
    expr = map (check.target.architecture "e") [ null "Qwen3ForCausalLM" ];
    expected = [ null "Qwen3ForCausalLM" ];
  };
  testArchitectureOfPytorchAlone = {
    expr = fails (check.target.architecture "e" "GptOssForCausalLM");
    expected = true;
  };
  testEngineClass = {
    expr = map check.target.engineClass [ null "MistralForCausalLM" "X" ];
    expected = [ null "LLaMAForCausalLM" null ];
  };
  testWarningsOfUntestedGpus = {
    expr = map (sm: builtins.length (check.target.warnings (facts // { inherit sm; }))) [ 90 100 103 120 ];
    expected = [ 0 0 1 1 ];
  };
  testWarningsOfQwen3Fp8 = {
    expr = builtins.length (
      check.target.warnings (facts // { architecture = "Qwen3ForCausalLM"; quantization = "FP8"; kvCache = "FP8"; })
    );
    expected = 2;
  };

  testLimitsAreAlwaysWrittenOut = {
    expr = limits { context = 4096; } { } { };
    expected = {
      maxBatchSize = 8;
      maxBeamWidth = 1;
      maxInputLen = 4095;
      maxNumTokens = 8192;
      maxSeqLen = 4096;
    };
  };
  testProfileLimitsYieldToGivenOnes = {
    expr = (limits { context = 4096; } { maxBatchSize = 256; } { maxBatchSize = 3; }).maxBatchSize;
    expected = 3;
  };
  testSequenceBeyondContext = {
    expr = fails (limits { context = 4096; } { } { maxSeqLen = 4097; });
    expected = true;
  };
  testSequenceUnknown = {
    expr = fails (limits { } { } { });
    expected = true;
  };
  testInputBeyondSequence = {
    expr = fails (limits { } { } { maxSeqLen = 8; maxInputLen = 9; });
    expected = true;
  };
  testTooFewTokensForTheBatch = {
    expr = fails (limits { context = 4096; } { } { maxBatchSize = 16; maxBeamWidth = 4; maxNumTokens = 63; });
    expected = true;
  };
  testLimitsOfNothingAndOfEverything = {
    expr = map (l: fails (limits { } { maxSeqLen = 4096; } l)) [
      { maxBatchSize = 0; }
      { maxNumTokens = 4611686018427387904; }
      { maxSeqLen = 2147483648; }
      { maxSeqLen = 2147483647; }
    ];
    expected = [ true true true false ];
  };
  testRanksOfNothing = {
    expr = map (p: fails (check.engine.parallel "e" { kvHeads = 4; } (one // p) null)) [
      { tensorParallel = 0; }
      { pipelineParallel = 0; }
      { tensorParallel = "2"; }
      { tensorParallel = 2; }
    ];
    expected = [ true true true false ];
  };
  testOptionsOfAnUnknownGpu = {
    expr = map (o: fails (check.options.valid "e" "trtllm-1.2.1" o)) [
      { gemPlugin = "auto"; }
      { gemmPlugin = "int4"; }
      { gemmPlugin = "auto"; reduceFusion = true; }
    ];
    expected = [ true true false ];
  };
  testLimitsUnknownName = {
    expr = fails (limits { context = 4096; } { } { maxBatch = 1; });
    expected = true;
  };
  testChunks = {
    expr = map
      (paged: fails (check.limits.chunks "e" { maxInputLen = 9; maxNumTokens = 8; } { usePagedContextFmha = paged; }))
      [ true false ];
    expected = [ false true ];
  };

  testProfileUnknown = {
    expr = fails (check.options.profile "e" "fast");
    expected = true;
  };
  testProfileOfNull = {
    expr = check.options.profile "e" null;
    expected = { limits = { }; options = { }; };
  };
  testThroughputOnHopperFp8 = {
    expr = resolve { quantization = "FP8"; kvCache = "FP8"; tensorParallel = 2; } throughput { };
    expected = {
      gemmSwigluPlugin = "fp8";
      kvCacheType = "paged";
      multipleProfiles = true;
      reduceFusion = true;
      useFp8ContextFmha = true;
      useFusedMlp = true;
      usePagedContextFmha = true;
      userBuffer = true;
    };
  };
  testThroughputDropsWhatTheTargetForbids = {
    expr = let o = resolve { sm = 120; engineClass = "QWenForCausalLM"; } throughput { }; in {
      inherit (o) gemmSwigluPlugin reduceFusion userBuffer useFp8ContextFmha usePagedContextFmha;
    };
    expected = {
      gemmSwigluPlugin = "disable";
      reduceFusion = false;
      userBuffer = false;
      useFp8ContextFmha = false;
      usePagedContextFmha = true;
    };
  };
  testAskedForAndForbiddenIsRefused = {
    expr = map fails [
      (resolve { } { } { reduceFusion = true; })
      (resolve { } { } { userBuffer = true; })
      (resolve { } { } { streamingllm = true; })
      (resolve { sm = 100; quantization = "FP8"; } { } { lowLatencyGemmPlugin = "fp8"; })
      (resolve { } { } { useFp8ContextFmha = true; })
      (resolve { kvCache = "INT8"; } { } { usePagedContextFmha = true; })
      (resolve { } { } { multipleProfiles = true; optNumTokens = 64; })
      (resolve { } { } { maxDraftLen = 2; gatherContextLogits = true; })
    ];
    expected = [ true true true true true true true true ];
  };
  testOptionNames = {
    expr = map fails [
      (resolve { } { } { maxOutputLen = 2; })
      (resolve { } { } { maxBatchSize = 2; })
      (resolve { } { } { outputDir = "x"; })
      (resolve { } { } { gemPlugin = "auto"; })
      (resolve { } { } { gemmPlugin = "auto"; })
    ];
    expected = [ true true true true false ];
  };
  testOptionTypes = {
    expr = map fails [
      (resolve { } { } { gemmPlugin = "int4"; })
      (resolve { } { } { useFusedMlp = "enable"; })
      (resolve { } { } { tokensPerBlock = "64"; })
      (resolve { } { } { loraTargetModules = "attn_q"; })
    ];
    expected = [ true true true true ];
  };
  testFlags = {
    expr = check.options.flags {
      gemmPlugin = "auto";
      loraTargetModules = [ "attn_q" "attn_v" ];
      stripPlan = true;
      useFusedMlp = false;
      weightStreaming = false;
    };
    expected = [
      "--gemm_plugin" "auto"
      "--lora_target_modules" "attn_q" "attn_v"
      "--strip_plan"
      "--use_fused_mlp" "disable"
    ];
  };

  testRuntimeAccepts = {
    expr = (run "tensorrt" asked "trtllm-1.1.0").id;
    expected = "trtllm-1.1.0";
  };
  testRuntimeAfterTheEngineEra = {
    expr = fails (run "tensorrt" asked "trtllm-1.3.0rc26");
    expected = true;
  };
  testRuntimeUnknown = {
    expr = map (id: fails (run "tensorrt" asked id)) [ "trtllm-1.2" "reference" ];
    expected = [ true true ];
  };
  testDriverFloor = {
    expr = map (v: fails (check.engine.driver "e" (run "tensorrt" asked "trtllm-1.2.1") v)) [ null "590.44.01" "595.1" "580.95.05" ];
    expected = [ false false false true ];
  };
  testParallelAccepts = {
    expr = check.engine.parallel "e" { heads = 8; kvHeads = 2; } (one // { tensorParallel = 4; }) 4;
    expected = 4;
  };
  testParallelRefuses = {
    expr = map fails [
      (check.engine.parallel "e" { } (one // { tensorParallel = 4; pipelineParallel = 2; }) 4)
      (check.engine.parallel "e" { experts = 8; } (one // { expertParallel = 3; }) null)
      (check.engine.parallel "e" { heads = 8; } (one // { tensorParallel = 2; expertParallel = 2; }) null)
      (check.engine.parallel "e" { heads = 12; kvHeads = 3; } (one // { tensorParallel = 2; }) null)
    ];
    expected = [ true true true true ];
  };
  testPromisedPrompts = {
    expr = map (a: fails (check.limits.promised "e" { maxInputLen = 9; maxNumTokens = a.tokens; } a.arguments)) [
      { tokens = 8; arguments = { enable_chunked_prefill = false; }; }
      { tokens = 9; arguments = { enable_chunked_prefill = false; }; }
      { tokens = 8; arguments = { enable_chunked_prefill = true; }; }
      { tokens = 8; arguments = { }; }
    ];
    expected = [ true false false false ];
  };
  testPipeline = {
    expr = map fails [
      (check.engine.pipeline "e" "Phi3ForCausalLM" 2)
      (check.engine.pipeline "e" "PhiMoEForCausalLM" 4)
      (check.engine.pipeline "e" "Phi3ForCausalLM" 1)
      (check.engine.pipeline "e" "LlamaForCausalLM" 2)
      (check.engine.pipeline "e" null 2)
    ];
    expected = [ true true false false false ];
  };
  # As NVIDIA's own Python has it: tests/golden/requests.jsonl.xz, compared by tests/python/engine_tensorrt/test_twin.py.
  testEffectiveLimits = {
    expr =
      let
        sizes = { maxBatchSize = 4; maxInputLen = 1000; maxSeqLen = 1024; maxNumTokens = 8192; maxBeamWidth = 1; };
        of = options: model: let e = check.limits.effective "e" sizes options model; in [ e.maxSeqLen e.maxNumTokens ];
      in
      [
        (of { } { })
        (of { removeInputPadding = false; } { })
        (of { speculativeDecodingMode = "medusa"; maxDraftLen = 2000; } { })
        (of { speculativeDecodingMode = "eagle"; maxDraftLen = 10; } { eagleLayers = 4; })
        (fails (of { speculativeDecodingMode = "eagle"; maxDraftLen = 257; } { }))
      ];
    expected = [ [ 1024 4096 ] [ 1024 4096 ] [ 3024 8004 ] [ 1038 4096 ] true ];
  };
  testTargetForms = {
    expr = map (check.engine.target "e") [ "h200" { gpu = "b200"; count = 2; } ];
    expected = [
      { gpu = "h200"; count = null; driver = null; }
      { gpu = "b200"; count = 2; driver = null; }
    ];
  };
  testTargetRefuses = {
    expr = map (t: fails (builtins.deepSeq (check.engine.target "e" t) true)) [ 3 { count = 2; } { gpu = "b200"; cuont = 2; } { gpu = "b200"; count = 0; } ];
    expected = [ true true true true ];
  };
  testLlmArgumentsHaveSources = {
    expr = builtins.filter (row: !(llmArgs.sources ? ${row.source})) (builtins.attrValues llmArgs.arguments);
    expected = [ ];
  };
  testLlmArgumentsAccepted = {
    expr = check.llmapi.arguments "e" "trtllm-1.2.1" {
      enable_chunked_prefill = true;
      kv_cache_config.free_gpu_memory_fraction = 0.8;
    };
    expected = {
      enable_chunked_prefill = true;
      kv_cache_config.free_gpu_memory_fraction = 0.8;
    };
  };
  testLlmArgumentsRefused = {
    expr = map (a: fails (check.llmapi.arguments "e" "trtllm-1.1.0" a)) [
      { enable_chunked_prefil = true; }
      { enable_chunked_prefill = 1; }
      { max_batch_size = 4; }
      { fast_build = true; }
      { nvfp4_gemm_config = { }; }
      { kv_cache_config.dtypo = "fp8"; }
      { kv_cache_config.max_tokens = "1"; }
      { tokenizer_mode = "fast"; }
    ];
    expected = [ true true true true true true true true ];
  };
  # The twin in Python tells these apart case by case (tests/python/engine_tensorrt/test_twin_runtimes.py).
  testRuntimeUnlisted =
    let
      described = {
        like = "trtllm-1.4.0rc1";
        image = "a.b/c:1.4.0rc2";
        versions.tensorrtLlm = "1.4.0rc2";
      };
      row = check.runtime.unlisted "f" described;
      made = { inherit row; inherit (row) id; };
    in
    {
      expr = [
        (run' made "llmapi" row.id).id
        (check.runtime.spec made == described)
        (check.runtime.spec "trtllm-1.2.1")
        (fails (run' made "tensorrt" row.id))
        (fails (run' "trtllm-1.2.1" "llmapi" row.id))
        (fails (check.runtime.unlisted "f" (described // { versions = { }; })))
      ];
      expected = [ "trtllm-1.4.0rc2-unverified" true "trtllm-1.2.1" true true true ];
    };
  # What takes a runtime, and what Triton serves.
  testRuntimeOf =
    let
      made = {
        id = "r-unverified";
        row = {
          kinds = [ "llmapi" ];
          paths.triton = null;
        };
      };
      packageOf = check.runtime.packageOf "f" ({ id }: "made of ${id}");
      withTriton = {
        id = "r";
        image = "26.07";
        row = {
          paths.triton = "/opt/tritonserver";
          images."26.07".tritonServer = "2.71.0";
        };
      };
    in
    {
      expr = [
        (check.runtime.idOf "f" "r")
        (check.runtime.idOf "f" made)
        (packageOf "r")
        (packageOf made).id
        (check.runtime.triton "f" withTriton).version
        (fails (check.runtime.triton "f" made))
      ]
      ++ map (v: fails (check.runtime.idOf "f" v) && fails (packageOf v)) [
        null
        3
        [ ]
        { }
        { id = "r"; }
        { like = "r"; }
      ];
      expected = [ "r" "r-unverified" "made of r" "r-unverified" "2.71.0" true true true true true true true ];
    };
  # Any value stands in an error, which Nix's toJSON cannot do.
  testDescribe = {
    expr = map check.arguments.describe [
      3
      "a"
      null
      true
      [ (x: x) ]
      { }
      { b = 1; a = x: x; }
      (x: x)
      /a
      { type = "derivation"; }
    ];
    expected = [ "3" "\"a\"" "null" "true" "a list" "{ }" "a set of a, b" "a function" "the path /a" "a derivation" ];
  };
  testWhole =
    let
      build = { a, b ? a }: a + b;
      of = check.arguments.whole "f" build;
      # Of one shape in every function; null where there is a default.
      shaped = check.arguments.whole "f" ({ model, name ? "n", limits ? { } }: model + name + limits);
      taken = args: (shaped args) == args;
      m = { type = "derivation"; };
    in
    {
      expr = [
        (of { a = 1; })
        (fails (of { }))
        (fails (of { b = 1; }))
        (fails (of 3))
        (check.arguments.call "f" build { a = 1; })
        (map taken [ { model = m; } { model = /a; } { model = "/nix/store/a"; name = null; limits = null; } ])
        (map (args: fails (shaped args)) [ { model = null; } { model = 3; } { model = "a"; } { model = m; name = 3; } { model = m; limits = [ ]; } ])
      ];
      expected = [ { a = 1; } true true true 2 [ true true true ] [ true true true true true ] ];
    };
  testOutput =
    let
      of = check.arguments.output "f" "engine" "mkEngine";
    in
    {
      expr = [ (of { kind = "rtx"; }).kind ] ++ map (v: fails (of v)) [ 3 null "a" { } { kind = 3; } ];
      expected = [ "rtx" true true true true true ];
    };
  testPin =
    let
      pin = {
        runtime = "r";
        image = "26.07";
        reference = "registry:5000/x:26.07";
        digest = "sha256:${sha}";
        system = "x86_64-linux";
        hash = "sha256-x";
        status = "computed";
      };
      pinned = check.runtime.pin "f" "r" "x86_64-linux";
    in
    {
      expr = [ (pinned pin).digest ] ++ map fails [
        (pinned (pin // { runtime = "s"; }))
        (pinned (pin // { system = "aarch64-linux"; }))
        (pinned (pin // { digest = "latest"; }))
        (pinned (pin // { strange = 1; }))
        (pinned (builtins.removeAttrs pin [ "hash" ]))
      ];
      expected = [ "sha256:${sha}" true true true true true ];
    };
}
