# shellcheck shell=bash disable=SC2154,SC2016
# What evaluation knows of GPUs, runtimes and memory, and the servers around engines.

# Every function over a runtime without a pin evaluates; what is built first says how to pin it.
test_stack_unpinned_runtime_evaluates_everywhere() {
  with_lib eval '
    let
      model = e.catalogue.tiny-qwen3.model;
      engine = e.mkEngine { kind = "tensorrt"; inherit model; target = "h200"; };
      llmapi = e.mkEngine { kind = "llmapi"; inherit model; };
    in map (d: builtins.isString d.drvPath) [
      engine llmapi (e.mkServe { inherit engine; }) (e.mkServe { engine = llmapi; }) (e.mkRunner { inherit model; })
    ]' --json && says '[true,true,true,true,true]' &&
    with_lib eval 'map (image: (e.mkRuntime { id = "trtllm-1.2.1"; inherit image; }).pinned) [ "26.04" "26.06" "26.07" ]' --json &&
    says '[false,true,false]' &&
    ! with_lib build 'e.mkRunner { model = e.catalogue.tiny-qwen3.model; }' --no-link -L &&
    says 'enginix runtime pin trtllm-1.2.1 --image 26.07 --system x86_64-linux -o runtime.json' &&
    says 'image = "26.06"'
}

test_stack_a_format_that_the_gpu_lacks_names_those_it_has() {
  local lib='let m = q: { modelName = "m"; quantization = q; model = { }; revision = null; outPath = "/nix/store/x"; }; t = q: target: (e.mkEngine { kind = "tensorrt"; model = m q; inherit target; limits.maxSeqLen = 64; checkpoint = { model = m q; parallel = { tensorParallel = 1; pipelineParallel = 1; expertParallel = 1; }; }; }).drvPath; in'
  ! with_lib eval "$lib t \"NVFP4\" \"h200\"" &&
    says 'NVFP4 needs SM 100 or later; target "h200" is SM 90. Use quantization = "FP8" on this GPU, or target = "b200".' &&
    says 'Engines for "h200" take: BF16, FP16, INT8, INT4, FP8.' &&
    ! with_lib eval "$lib t \"W4A16_AWQ\" \"b200\"" && says 'Engines for "b200" take: BF16, FP16, FP8, NVFP4.'
}

test_stack_edgellm_that_does_not_fit_is_refused() {
  local mk='m: args: (e.mkEngine ({ kind = "edgellm"; model = m; target = "rtx-3090"; } // args)).drvPath'
  # shellcheck disable=SC2016
  local big='{ modelName = "big"; outPath = "/nix/store/x"; quantization = null; weightBytes = 15231271888; revision = null; model = {
    architecture = "Qwen2ForCausalLM"; layers = 28; heads = 28; kvHeads = 4; headSize = 128; hiddenSize = 3584; intermediateSize = 18944;
    vocabulary = 152064; context = 32768; dtype = "bfloat16"; }; }'
  ! with_lib eval "($mk) ($big) { limits = { maxInputLen = 512; maxBatchSize = 16; maxKvCacheCapacity = 32768; }; }" &&
    says 'big-engine: it does not fit rtx-3090 (22.3 GiB)' && says 'Smallest change that fits: limits.maxBatchSize = 4.' &&
    ! with_lib eval "($mk) ($big) { limits.maxBatchSize = 2; }" && says 'no runtime with TensorRT is given'
}
