# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# TensorRT for RTX: NVIDIA's own builder in a real sandbox, without a GPU; what evaluation refuses.

rtx_parts='
  tiny = e.catalogue.tiny-qwen3;
  rtx = args: e.mkEngine ({ kind = "rtx"; inherit (tiny) checkpoint; limits = { maxBatchSize = 2; maxSeqLen = 64; }; } // args);
  # The tiny model, said to be another.
  said = facts: { model = tiny.model // { quantization = facts.quantization or null; model = tiny.model.model // facts; }; };
'

with_rtx() { # nix verb, expression over those
  with_lib "$1" "let $rtx_parts in $2" "${@:3}"
}

need_rtx() {
  quietly tests/hostpkgs/environments.sh --existing rtx || return 77
}

test_rtx_engine_is_pure_and_repeats() {
  need_rtx || return
  with_rtx build 'rtx { }' -o "$tmp/rtx" -L || return 1
  with_rtx build 'rtx { }' --no-link --rebuild -L && says 'gate network: passed' &&
    [ -s "$tmp/rtx/engine/decoder.plan" ] && [ -z "$(nix-store -q --references "$(readlink "$tmp/rtx")")" ] &&
    grep -q '"executed": false' "$tmp/rtx/enginix.json"
}

test_rtx_engine_of_the_catalogue_is_for_every_gpu_and_not_free() {
  with_rtx eval 'let one = e.catalogue.tiny-qwen3-rtx.engine; in [ one.targets one.kind one.limits.maxSeqLen (map (l: l.free or true) one.meta.license) one.allowSubstitutes ]' --json &&
    says '[[80,86,89,120,121],"rtx",2048,' && says 'false],false]'
}

# What it says of a wrong argument; each evaluates, and builds nothing.
rtx_refuses() { # arguments, what the error says
  ! with_rtx eval "(rtx ($1)).drvPath" && says "$2"
}

test_rtx_refusals_name_the_reason_and_another_kind() {
  rtx_refuses 'said { kvCacheQuantization = "FP8"; }' 'refuses a KV cache in FP8' && says 'kind = "tensorrt" or "llmapi"' &&
    rtx_refuses 'said { architecture = "Qwen3MoeForCausalLM"; }' 'Qwen3MoeForCausalLM is not taken by kind rtx' && says 'serve the model with the llmapi kind' &&
    rtx_refuses 'said { architecture = "OPTForCausalLM"; }' 'OPTForCausalLM is not taken by kind rtx' && says 'serve the model with transformers' &&
    rtx_refuses 'said { quantization = "W4A8_AWQ"; }' 'W4A8_AWQ is not taken by kind rtx' &&
    rtx_refuses 'said { headSize = 512; }' 'heads of 512 have no fused attention' &&
    rtx_refuses '{ targets = [ "h200" ]; }' 'h200 is SM 90' && says 'that GPU: tensorrt or llmapi or reference' &&
    rtx_refuses '{ targets = [ 75 ]; }' 'is SM 75' && says 'that GPU: reference' &&
    rtx_refuses '{ targets = [ "b200" ]; }' 'is SM 100' &&
    rtx_refuses '{ targets = [ "rtx-3090" ]; } // said { quantization = "FP8"; }' 'FP8 for SM 89, 120, 121 alone' &&
    rtx_refuses '{ targets = [ "rtx-4090" ]; } // said { quantization = "NVFP4"; }' 'NVFP4 for SM 120, 121 alone' &&
    rtx_refuses '{ targets = [ "gb10" ]; }' 'SM 121 with x86_64-linux alone' &&
    rtx_refuses '{ targets = [ ]; }' 'leave it out for all' &&
    rtx_refuses '{ checkpoint = e.mkCheckpoint { inherit (tiny) model; tensorParallel = 2; }; }' '2 ranks' &&
    rtx_refuses '{ limits.maxSeqLen = 4096; }' 'maxSeqLen = 4096' &&
    rtx_refuses '{ limits.maxBeamWidth = 2; }' 'maxBeamWidth' &&
    rtx_refuses '{ runtime = "trtllm-1.2.1"; }' 'rtx-1.7.1.116' &&
    rtx_refuses '{ target = "rtx-4090"; }' 'target is an argument of the kind' && says 'pass targets = [ GPU ]' &&
    ! with_rtx eval 'e.mkEngineMatrix { kind = "rtx"; inherit (tiny) model; targets = [ "l4" ]; }' && says 'pass them to mkEngine' &&
    rtx_refuses 'let m = said { }; in m // { model = m.model // { weightBytes = 16000000000; }; }' 'takes up to 62 GiB' && says 'buildMemoryGB' &&
    rtx_refuses '{ targets = [ "rtx-4090" "rtx-4060" ]; } // (let m = said { layers = 28; heads = 16; kvHeads = 8; headSize = 128; hiddenSize = 1024; intermediateSize = 3072; vocabulary = 151936; context = 2048; dtype = "bfloat16"; tiedEmbeddings = false; }; in m // { model = m.model // { weightBytes = 8000000000; }; })' 'it does not fit rtx-4060 (7.4 GiB)' && says 'enginix plan MODEL --kind rtx --target rtx-4060 --memory 8'
}

test_rtx_targets_are_sms_in_order() {
  with_rtx eval '[ (rtx { targets = [ "rtx-5090" "RTX 3090" 89 "rtx-4090" ]; }).targets (rtx (said { quantization = "FP8"; })).targets (rtx (said { quantization = "NVFP4"; })).targets ]' --json &&
    says '[[86,89,120],[89,120,121],[120,121]]'
}

test_rtx_repositories_are_served_in_the_environment_that_builds() {
  need_rtx || return
  with_rtx build 'e.mkTritonRepo { engine = rtx { }; interpreter = true; }' -o "$tmp/repo" &&
    grep -q interpreter_checkpoint "$tmp/repo/tensorrt_llm/config.pbtxt" &&
    with_rtx eval '(e.mkTritonServer { repo = e.mkTritonRepo { engine = rtx { }; }; }).installation' &&
    says 'python3-rtx/bin/python3' &&
    with_rtx eval '(e.mkGateway { servers.a = e.mkTritonServer { repo = e.mkTritonRepo { engine = rtx { }; }; }; }).drvPath' &&
    ! with_rtx eval '(e.mkTritonRepo { engine = rtx { }; maxBatchSize = 3; }).drvPath' && says "above the engine's 2" &&
    ! with_rtx eval '(e.mkTritonRepo { engine = rtx { }; device = "cuda"; }).drvPath' && says 'unknown argument "device"' &&
    ! with_rtx eval '(e.mkServe { engine = rtx { }; }).drvPath' && says 'engine.kind'
}
