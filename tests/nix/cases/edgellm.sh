# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# TensorRT Edge-LLM: the real exporter in real Nix builds; what evaluation refuses; the engine stage over a stand-in.

edgellm_parts='
  tiny = e.catalogue.tiny-qwen3.model;
  edge = args: e.mkEngine ({ kind = "edgellm"; model = tiny; target = "rtx-5090"; } // args);
  # The tiny model after a command, or quantized by ModelOpt.
  changed = name: command: extra:
    nixpkgs.runCommand name { } "cp -rL ${tiny} \$out; chmod -R u+w \$out; cd \$out; rm enginix.json; ${command}"
    // { modelName = name; model = { }; quantization = null; } // extra;
  quantized = name: quantization:
    nixpkgs.runCommand "tiny-${name}" { } "source ${e.environment}; ${import (root + "/tests/hostpkgs/environments.nix") "dev"}/bin/python3 ${root + "/tests/python/edgellm/quantized.py"} ${tiny} . ${name}; mv ${name} \$out"
    // { modelName = "tiny-${name}"; model = { }; inherit quantization; };
  # Stand-ins: a Python with the wheel but without TensorRT and GPU, and a driver.
  driver = nixpkgs.runCommand "standin-driver" { } "bash ${root + "/tests/standin/driver.sh"} \$out GeForce-RTX-5090 12.0 32607 32000 590.44.01";
  standin = e.override {
    edgellm-runtime = nixpkgs.runCommand "standin-edgellm-runtime" { } "
      mkdir -p \$out/bin; cp -r ${root + "/tests/python/edgellm/standin"} \$out/standin
      bash \$out/standin/python.sh \$out/bin/python3 ${e.edgellm-python}/bin/python3 \"\" ${root + "/python"}" // { inherit driver; };
  };
  engine = args: standin.mkEngine ({ kind = "edgellm"; model = tiny; target = "rtx-5090"; limits.maxInputLen = 64; gates = { }; } // args);
  # Long enough for what the gates ask.
  gated = args: engine ({ limits = { maxInputLen = 512; maxKvCacheCapacity = 1024; }; } // args);
'

with_edge() { # nix verb, expression over those
  with_lib "$1" "let $edgellm_parts in $2" "${@:3}"
}

need_edgellm() {
  quietly tests/hostpkgs/environments.sh --existing edgellm || return 77
}

test_edgellm_export_is_pure() {
  need_edgellm || return
  with_edge build '(edge { }).export' -o "$tmp/export" && quietly nix-store --read-log "$(readlink "$tmp/export")" &&
    says 'tensors accounted for' && [ -s "$tmp/export/llm/model.onnx.data" ] &&
    [ -z "$(nix-store -q --references "$(readlink "$tmp/export")")" ]
}

# Slow: the exporter runs twice. Builds of other stages are repeated always (quantized_the_same_bytes_twice).
test_edgellm_export_repeats() {
  slow || return
  need_edgellm || return
  with_edge build '(edge { }).export' --no-link && with_edge build '(edge { }).export' --no-link --rebuild
}

# A broken model is one clear error, and no output.
edgellm_refuses() { # command that breaks the model, what the error says
  need_edgellm || return
  ! with_edge build "(edge { model = changed \"broken\" ''$1'' { }; }).export" --no-link -L &&
    says "$2" && ! grep -q Traceback "$out"
}

test_edgellm_truncated_weights() { edgellm_refuses 'truncate -s 1500000 model.safetensors' 'truncated?'; }
test_edgellm_missing_chat_template() { edgellm_refuses 'rm chat_template.jinja' 'no chat template'; }
test_edgellm_unsupported_architecture_in_the_build() {
  edgellm_refuses 'sed -i s/Qwen3ForCausalLM/MambaForCausalLM/ config.json' "architecture 'MambaForCausalLM'"
}

test_edgellm_unsupported_architecture_at_evaluation() {
  ! with_edge eval '(edge { model = changed "m" "" { model.architecture = "MambaForCausalLM"; }; }).name' &&
    says 'unknown architecture "MambaForCausalLM"' && says 'accepts any name' && says 'Instead: build an engine of kind tensorrt, or serve' &&
    ! with_edge eval '(edge { model = changed "m" "" { model.architecture = "DeepseekV2ForCausalLM"; }; }).name' &&
    says 'Instead: serve the model with transformers'
}

test_edgellm_gpu_without_payload_names_those_that_have_one() {
  ! with_edge eval '(edge { target = "h200"; }).name' &&
    says 'no payload for SM 90 (target "h200")' && says 'SM 80, 86, 100, 120 on x86_64-linux' && says 'kind = "tensorrt"' &&
    ! says "Edge-LLM's plugin" >/dev/null &&
    ! with_edge eval '(edge { target = "l40s"; }).name' && says "build Edge-LLM's plugin" &&
    ! with_edge eval '(edge { target = "t4"; }).name' && says 'by another kind: kind = "reference"' &&
    ! says "Edge-LLM's plugin" >/dev/null &&
    ! with_edge eval '(edge { target = "gb10"; }).name' && says 'for SM 121 (target "gb10") on aarch64-linux alone' &&
    says 'build it for aarch64-linux' && says 'kind = "llmapi"' && ! says "Edge-LLM's plugin" >/dev/null &&
    ! with_edge eval '(edge { target = "gb200"; }).name' &&
    says 'no payload for SM 100 (target "gb200") on aarch64-linux' && ! says 'build it for' >/dev/null
}

test_edgellm_format_against_gpu() {
  ! with_edge eval '(edge { target = "a100-80gb"; model = quantized "nvfp4" "NVFP4"; }).name' &&
    says 'NVFP4 needs SM 100 or later; target "a100-80gb" is SM 80' &&
    ! with_edge eval '(edge { model = quantized "x" "W4A8_AWQ"; }).name' && says 'unknown quantization "W4A8_AWQ"'
}

# What Python refuses of a model is refused at evaluation, where its lock tells it.
test_edgellm_models_that_no_export_expresses() {
  local of='m: (edge { model = changed "m" "" m; }).name'
  ! with_edge eval "($of) { model = { quantizationMethod = \"awq\"; }; }" && says 'quantized by awq' && says mkQuantized &&
    ! with_edge eval "($of) { model = { architecture = \"Qwen3ForCausalLM\"; modelType = \"qwen2\"; }; }" && says 'has qwen3' &&
    ! with_edge eval "($of) { model = { architecture = \"Qwen3ForCausalLM\"; attentionWindow = [ 2048 32 ]; }; }" &&
    says 'sliding windows of 2048 and 32 tokens' &&
    with_edge eval "($of) { model = { architecture = \"Qwen3ForCausalLM\"; attentionWindow = [ 32 ]; }; }" &&
    ! with_edge eval "($of) { quantization = \"W4A16_AWQ\"; model = { kvCacheQuantization = \"FP8\"; }; }" &&
    says 'ignores the FP8 KV cache' && says 'without kvCache' &&
    with_edge eval "($of) { quantization = \"FP8\"; model = { kvCacheQuantization = \"FP8\"; }; }" &&
    ! with_edge eval "($of) { fileNames = [ \"model.safetensors\" \"tokenizer.model\" ]; }" && says 'no tokenizer.json' &&
    ! with_edge eval "($of) { fileNames = [ \"pytorch_model.bin\" \"tokenizer.json\" ]; }" && says 'no .safetensors' &&
    ! with_edge eval "($of) { fileNames = [ \"a.safetensors\" \"tokenizer.json\" \"additional_chat_templates/t.jinja\" ]; }" &&
    says 'named chat templates' &&
    ! with_edge eval '(edge { model = builtins.path { path = root + "/tests/models/tiny-qwen3"; name = "m"; }; }).export.name' &&
    says 'it has no modelName' && says 'runCommand'
}

test_edgellm_arguments() {
  ! with_edge eval '(edge { limits.maxInputLen = 9000; }).name' && says 'beyond maxKvCacheCapacity' &&
    ! with_edge eval '(edge { limits.maxInputlen = 9; }).name' && says 'Did you mean maxInputLen?' &&
    ! with_edge eval '(edge { exportOptions.int4GemmPluginVersion = 3; }).name' && says 'one of: 1, 2' &&
    ! with_edge eval '(edge { plugins = { }; }).name' && says 'plugins is an argument of the kind tensorrt' &&
    ! with_edge eval '(edge { target = { gpu = "rtx-5090"; count = 2; }; }).name' && says 'runs on one GPU' &&
    ! with_edge eval '(edge { runtime = "trtllm-1.2.1"; }).name' && says 'has no kind "edgellm"'
}

test_edgellm_without_a_runtime_says_what_to_pass() {
  ! with_edge eval '(edge { }).drvPath' && says 'edgellm-runtime' && says '10.16.0.72' &&
    with_edge eval '(edge { }).export.name' && says tiny-qwen3-edgellm-export
}

test_edgellm_engine_needs_the_targets_feature() {
  need_edgellm || return
  # Limits that no other test builds: what is in the store already needs no builder.
  ! with_edge build 'engine { limits.maxInputLen = 63; }' --no-link && says 'cuda-sm120'
}

test_edgellm_engine_is_built_in_both_isolations_by_the_stand_in() {
  need_edgellm || return
  local features='system-features = benchmark big-parallel kvm nixos-test cuda cuda-sm120'
  ENGINIX_NIX_CONFIG=$features with_edge build 'engine { }' -o "$tmp/engine" -L &&
    ENGINIX_NIX_CONFIG=$features ENGINIX_SANDBOX=relaxed with_edge build 'engine { isolation = "relaxed"; }' --no-link -L ||
    return 1
  grep -q '"max_input_len": 64' "$tmp/engine/engine/config.json" &&
    ! nix-store -q --references "$(readlink "$tmp/engine")" | grep -q edgellm-export
}

test_edgellm_server_is_on_loopback_with_the_key_from_a_file() {
  need_edgellm || return
  local features='system-features = benchmark big-parallel kvm nixos-test cuda cuda-sm120'
  ! with_edge eval '(standin.mkServe { engine = engine { }; apiKeyFile = ./key; }).name' && says 'in the store' || return 1
  ! with_edge eval '(standin.mkServe { engine = engine { builder = "onnx"; llmBuild = driver; }; }).name' && says 'C++ runtime' || return 1
  ENGINIX_NIX_CONFIG=$features with_edge build 'standin.mkServe { engine = engine { }; options.logLevel = "debug"; }' -o "$tmp/serve" || return 1
  umask 077
  echo secret-of-the-test >"$tmp/api-key"
  STATE_DIRECTORY=$tmp/state CREDENTIALS_DIRECTORY=$tmp quietly "$tmp/serve/bin/tiny-qwen3-serve" --dry-run &&
    says '--host 127.0.0.1' && says "$tmp/api-key" && says '--log-level debug' && ! grep -q secret-of-the-test "$out"
}

test_edgellm_gates_evaluate_without_a_runtime() {
  with_edge eval '(edge { gates.smoke = { }; }).export.name' && says tiny-qwen3-edgellm-export &&
    with_edge eval 'map (d: builtins.isString d.drvPath) [ (engine { gates = null; }) (engine { gates = null; }).answers ]' --json && says '[true,true]' &&
    ! with_edge eval '(engine { gates.smoke = { }; builder = "onnx"; llmBuild = driver; }).drvPath' && says 'has no server to ask' &&
    with_edge eval '(engine { gates = null; builder = "onnx"; llmBuild = driver; }).name' && says 'not gated' &&
    ! with_edge eval '(engine { gates.coverage = { }; }).drvPath' && says 'unknown' &&
    with_edge eval 'let a = gated { gates.greedy.top1 = 0.5; }; b = gated { gates.smoke = { }; }; in [ (a.drvPath == b.drvPath) (a.answers.drvPath == b.answers.drvPath) (a.ungated.drvPath == b.ungated.drvPath) ]' --json &&
    says '[false,true,true]'
}

test_edgellm_engine_is_gated_by_what_its_server_says() {
  slow || return
  need_edgellm || return
  local features='system-features = benchmark big-parallel kvm nixos-test cuda cuda-sm120'
  local gated='gated { gates = null; name = "gated"; }' answers
  ENGINIX_NIX_CONFIG=$features with_edge build "$gated" -o "$tmp/gated" -L && with_edge eval "($gated).answers.outPath" --raw || return 1
  # What was built before has its logs.
  answers=$(grep -o '/nix/store/[^ ]*$' "$out")
  quietly nix-store --read-log "$(readlink "$tmp/gated")" "$answers" && says 'gate greedy: passed' &&
    says 'stand-in: answers are computed by transformers' || return 1
  grep -q '"greedy": "passed"' "$tmp/gated/enginix.json" && grep -q '"promptTokens"' "$tmp/gated/enginix.json" &&
    [ -s "$tmp/gated/engine/config.json" ] && grep -q 'stand-in answers are computed by transformers' "$tmp/gated/report.html" &&
    grep -q '"stand-in": "answers are computed by transformers, not by Edge-LLM"' "$tmp/gated/gates.json" || return 1
  # Judged again, and asked no more.
  ! ENGINIX_NIX_CONFIG=$features with_edge build 'gated { gates.perplexity = { }; name = "gated"; }' --no-link -L &&
    says 'gate perplexity failed' && says 'generated tokens alone' && ! grep -q 'answers are computed by' "$out"
}
