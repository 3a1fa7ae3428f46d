# Options of trtllm-build and arguments of the LLM API.
{ lib, check }:
let
  fails = import ../fails.nix;
  read = name: lib.importJSON (../../../python/enginix/data + "/${name}.json");
  table = read "tensorrt/build_options";
  llmArgs = read "llmapi/llm_args";
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
in
{
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
  testOptionsOfAnUnknownGpu = {
    expr = map (o: fails (check.options.valid "e" "trtllm-1.2.1" o)) [
      { gemPlugin = "auto"; }
      { gemmPlugin = "int4"; }
      { gemmPlugin = "auto"; reduceFusion = true; }
    ];
    expected = [ true true false ];
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
}
