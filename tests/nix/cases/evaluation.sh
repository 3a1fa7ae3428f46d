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
