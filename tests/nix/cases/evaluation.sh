# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# What evaluation refuses, and what it names.

test_pure_checks() {
  quietly "$nix" build --no-link .#checks.x86_64-linux.pure .#checks.x86_64-linux.coverage
}

test_a_branch_is_no_revision() {
  ! with_lib eval 'e.mkHfModel { repo = "a/b"; revision = "main"; hash = ""; }' &&
    says 'is not a commit' && says 'enginix lock a/b --revision main'
}

test_nothing_pinned() {
  ! with_lib eval 'e.mkHfModel { }' && says 'nothing pins the model'
}

test_unknown_argument_names_the_nearest() {
  ! with_lib eval 'e.mkCheckpoint { model = { }; tensorParalel = 2; }' &&
    says 'Did you mean tensorParallel?'
}

test_unknown_architecture_lists_the_known() {
  ! with_lib eval 'e.mkCheckpoint { model = { model.architecture = "MambaForCausalLM"; quantization = null; }; }' &&
    says 'unknown architecture "MambaForCausalLM"' && says 'Qwen3ForCausalLM'
}

test_heads_not_divisible() {
  ! with_lib eval 'e.mkCheckpoint { model = e.catalogue.tiny-qwen3.model; tensorParallel = 3; }' &&
    says 'does not divide'
}

test_unknown_engine_kind() {
  ! with_lib eval 'e.mkEngine { kind = "tensort"; model = e.catalogue.tiny-qwen3.model; }' &&
    says 'Did you mean tensorrt?'
}

test_nvfp4_refused_on_hopper() {
  ! with_lib eval '(e.mkEngine { kind = "tensorrt"; model = e.catalogue.qwen3-32b-nvfp4.model; target = "h200"; }).drvPath' &&
    says 'NVFP4 needs SM 100 or later; target "h200" is SM 90'
}

test_flake_shows_its_outputs() {
  quietly "$nix" flake show || return 1
  local name
  for name in tiny-qwen3-{model,checkpoint,engine,triton-repo,triton-server} qwen3-32b-nvfp4-engine demo triton-server \
    devShells formatter nixosModules overlays templates; do
    says "$name" || return 1
  done
}

test_flake_check_evaluates() {
  quietly "$nix" flake check --no-build
}

# Errors name the arguments of the function that was called.
test_mkquantized_speaks_of_its_own_formats() {
  ! with_lib eval 'e.mkQuantized { model = e.catalogue.tiny-qwen3.model; format = "nvfp4"; target = "h200"; }' &&
    says 'Use format = "fp8" on this GPU, or target = "b200".' && ! says 'quantization ='
}

test_a_runtime_without_triton_has_no_triton_server() {
  local of='runtime: e.mkTritonServer { repo = e.mkTritonRepo { engine = e.mkEngine { kind = "llmapi"; inherit runtime; model = e.catalogue.tiny-qwen3.model; }; }; }'
  local described='like = "trtllm-1.2.1"; image = "a.b/c:26.12"; versions.tensorrtLlm = "1.2.2";'
  ! with_lib eval "(($of) \"trtllm-1.4.0rc1\").drvPath" && says 'the image of runtime trtllm-1.4.0rc1 has no Triton' &&
    says 'mkServe { engine = …; }' && says 'trtllm-1.1.0, trtllm-1.2.1' &&
    ! with_lib eval "(($of) (e.mkRuntime { $described })).drvPath" && says 'versions.tritonServer' &&
    with_lib eval "(($of) (e.mkRuntime { $described versions.tritonServer = \"2.76.0\"; })).tritonVersion" && says '2.76.0' &&
    with_lib eval "(($of) (e.mkRuntime { $described versions.tritonServer = \"2.76.0\"; })).meta.description" &&
    says 'Triton Inference Server for tiny-qwen3; runtime trtllm-1.2.2-unverified is not verified by enginix' &&
    ! with_lib eval '(e.mkTritonRepo { engine = e.mkEngine { kind = "llmapi"; model = e.catalogue.tiny-qwen3.model; runtime = "trtllm-1.4.0rc1"; }; }).drvPath' &&
    says 'mkTritonRepo: the image of runtime trtllm-1.4.0rc1 has no Triton'
}

test_a_runner_wants_the_engine_path() {
  ! with_lib eval '(e.mkRunner { model = e.catalogue.tiny-qwen3.model; runtime = "trtllm-1.4.0rc1"; }).drvPath' &&
    says 'mkRunner: runtime "trtllm-1.4.0rc1" has no engine path' && says 'runtime = "trtllm-1.1.0" or "trtllm-1.2.1"' &&
    with_lib eval '(e.mkRunner { model = e.catalogue.tiny-qwen3.model; runtime = "trtllm-1.3.0rc20"; }).drvPath'
}

test_a_model_and_its_quantized_form_exclude_each_other() {
  local model='e.catalogue.tiny-qwen3.model'
  ! with_lib eval "(e.mkEngine { kind = \"llmapi\"; model = $model; quantized = e.mkQuantized { model = $model; format = \"int4_wo\"; }; }).drvPath" &&
    says 'pass model or quantized, not both'
}

# Names of stages evaluate no engine, and hold none that throws for want of Triton.
test_a_pinned_model_without_triton_has_a_server_all_the_same() {
  mkdir -p "$tmp/pins" && cp tests/models/tiny-qwen3.lock.json "$tmp/pins/own.lock.json" || return 1
  echo '{"kind": "llmapi", "runtime": "trtllm-1.4.0rc1"}' >"$tmp/pins/own.engine.json"
  with_lib eval "builtins.attrNames (e.mkPinned { directory = /. + \"$tmp/pins\"; })" && says '"own-serve"' && ! grep -q triton "$out" &&
    with_lib eval "(e.mkPinned { directory = /. + \"$tmp/pins\"; }).own-serve.drvPath"
}

# Loudly unverified: at evaluation, in the id, in the request, and in the manifest of what is built with it.
test_a_runtime_that_the_table_does_not_have() {
  local described='like = "trtllm-1.4.0rc1"; image = "nvcr.io/nvidia/tensorrt-llm/release:1.4.0rc2"; versions.tensorrtLlm = "1.4.0rc2";'
  local engine="e.mkEngine { kind = \"llmapi\"; model = e.catalogue.tiny-qwen3.model; runtime = e.mkRuntime { $described }; }"
  with_lib build "$engine" --no-link --json && says 'trtllm-1.4.0rc2-unverified is not verified by enginix' || return 1
  grep -q '"verified": *false' "$(grep -o '"out":"[^"]*' "$out" | cut -d'"' -f4)/enginix.json" || return 1
  with_lib build "(e.mkRuntime { $described }).rootfs" --no-link && return 1
  says 'enginix runtime pin description.json' && says '"like":"trtllm-1.4.0rc1"' || return 1
  # What the refusal says to write is no name that the table lacks.
  ! with_lib eval "(e.mkEngine { kind = \"tensorrt\"; target = \"h200\"; ${engine#*llmapi\";}).drvPath" && says 'build on a runtime of the engine era' &&
    says 'runtime = mkRuntime' && ! says 'runtime = "trtllm-1.4.0rc2-unverified"' >/dev/null || return 1
  ! with_lib eval '(e.mkEngine { kind = "llmapi"; inherit (e.catalogue.tiny-qwen3) model; runtime = "trtllm-1.5.0"; }).drvPath' &&
    says 'unknown runtime "trtllm-1.5.0". Known' && says 'pass runtime = mkRuntime' || return 1
  ! with_lib eval 'e.mkRuntime { like = "trtllm-1.4.0rc1"; id = "trtllm-1.2.1"; }' && says 'exclude each other' &&
    ! with_lib eval 'e.mkRuntime { }' && says 'pass id, or like, image and versions' &&
    ! with_lib eval 'e.mkRuntime { id = "trtllm-1.2.1"; versions.tensorrtLlm = "1.2.2"; }' && says 'pass like in place of id' &&
    ! with_lib eval "(e.mkRuntime { $described pin = { runtime = \"trtllm-1.4.0rc1\"; }; }).drvPath" && says 'not of trtllm-1.4.0rc2-unverified' &&
    says 'enginix runtime pin description.json' &&
    ! with_lib eval "(e.mkEngine { kind = \"tensorrt\"; target = \"h200\"; model = e.catalogue.tiny-qwen3.model; runtime = e.mkRuntime { $described }; }).drvPath" &&
    says 'has no engine path'
}

test_32b_engine_has_the_right_inputs() {
  quietly "$nix" show-derivation --derivation .#qwen3-32b-nvfp4-engine || quietly "$nix" show-derivation .#qwen3-32b-nvfp4-engine || return 1
  says 'qwen3-32b-nvfp4-engine-sm120' && says 'qwen3-32b-nvfp4-checkpoint.drv' && says 'qwen3-32b-nvfp4-model' && says 'cuda-sm120'
}

test_32b_engine_says_at_once_what_it_needs() {
  refuses timeout 60 "$nix" build --no-link .#qwen3-32b-nvfp4-engine &&
    says 'no commit is recorded' && says 'needs a Blackwell GPU' && says 'nix build .#tiny-qwen3-engine'
}

test_the_server_of_the_32b_model_says_so_too() {
  refuses timeout 60 "$nix" run .#triton-server &&
    says 'needs a Blackwell GPU' && says 'nix run .#tiny-qwen3-triton-server'
}
