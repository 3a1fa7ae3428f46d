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

test_stack_llmapi_is_refused_what_the_gpu_cannot() {
  local m='{ modelName = "m"; quantization = "NVFP4"; model = { }; revision = null; outPath = "/nix/store/x"; }'
  local opt='{ modelName = "m"; quantization = null; model.architecture = "OPTForCausalLM"; revision = null; outPath = "/nix/store/x"; }'
  local big='{ modelName = "big"; outPath = "/nix/store/x"; quantization = null; weightBytes = 150000000000; revision = null; model = {
    architecture = "Qwen2ForCausalLM"; layers = 80; heads = 64; kvHeads = 8; headSize = 128; hiddenSize = 8192; intermediateSize = 29568;
    vocabulary = 152064; context = 32768; dtype = "bfloat16"; }; }'
  local mk='m: args: (e.mkEngine ({ kind = "llmapi"; model = m; gates = { }; } // args)).drvPath'
  ! with_lib eval "($mk) ($m) { target = \"h200\"; limits.maxSeqLen = 64; }" &&
    says 'SM 90 has no hardware for NVFP4' && says 'use runtime = "trtllm-1.3.0rc20" or a later one, or a GPU with NVFP4' &&
    ! with_lib eval "($mk) ($big) { target = \"h100\"; }" && says 'big-engine: it does not fit h100' && says 'enginix plan MODEL --kind llmapi --target h100' &&
    with_lib eval "builtins.isString (($mk) ($big) { target = { gpu = \"h100\"; count = 4; }; tensorParallel = 4; })" &&
    with_lib eval "builtins.isString (($mk) ($big) { })" &&
    ! with_lib eval "($mk) ($opt) { limits.maxSeqLen = 64; }" && says "m-engine: TensorRT-LLM's PyTorch backend has no class for OPTForCausalLM" &&
    with_lib eval "builtins.isString (($mk) ($opt) { limits.maxSeqLen = 64; runtime = \"trtllm-1.3.0rc20\"; })"
}

test_stack_reference_of_an_architecture_that_it_does_not_compute() {
  local mk='a: (e.mkEngine { kind = "reference"; gates = { }; reference = null;
    model = { modelName = "m"; quantization = null; model.architecture = a; revision = null; outPath = "/nix/store/x"; };
    checkpoint = { modelName = "m"; outPath = "/nix/store/x"; }; }).drvPath'
  ! with_lib eval "($mk) \"DbrxForCausalLM\"" && says 'the reference executor does not compute DbrxForCausalLM' &&
    with_lib eval "builtins.isString (($mk) \"OPTForCausalLM\")" && with_lib eval "builtins.isString (($mk) null)"
}

test_stack_eagle_of_a_checkpoint_of_ones_own() {
  local mk='s: (e.mkEngine { kind = "tensorrt"; target = "h200"; limits = { maxSeqLen = 64; maxBatchSize = 8; }; gates = { }; speculative = s;
    model = m; checkpoint = { outPath = "/nix/store/x"; model = m; parallel = { tensorParallel = 1; pipelineParallel = 1; expertParallel = 1; }; }; }).request'
  # shellcheck disable=SC2016
  local m='let m = { modelName = "m"; quantization = null; model.architecture = "EagleForCausalLM"; revision = null; outPath = "/nix/store/x"; }; in'
  ! with_lib eval "$m ($mk) { mode = \"eagle\"; maxDraftLen = 4; }" &&
    says 'num_eagle_layers in the checkpoint (speculative.eagleLayers)' &&
    with_lib eval "$m (($mk) { mode = \"eagle\"; maxDraftLen = 4; eagleLayers = 2; }).options.speculativeDecodingMode" && says "eagle" &&
    ! with_lib eval "$m ($mk) { mode = \"eagle\"; maxDraftLen = 257; eagleLayers = 2; }" && says 'at most 512 sequences and 256 draft tokens' &&
    ! with_lib eval "$m ($mk) { mode = \"eagle\"; maxDraftLen = 4; eagleLayers = 0; }" && says 'eagleLayers'
}

test_stack_edgellm_that_does_not_fit_is_refused() {
  local mk='m: args: (e.mkEngine ({ kind = "edgellm"; model = m; target = "rtx-3090"; } // args)).drvPath'
  # shellcheck disable=SC2016
  local big='{ modelName = "big"; outPath = "/nix/store/x"; quantization = null; weightBytes = 15231271888; revision = null; model = {
    architecture = "Qwen2ForCausalLM"; layers = 28; heads = 28; kvHeads = 4; headSize = 128; hiddenSize = 3584; intermediateSize = 18944;
    vocabulary = 152064; context = 32768; dtype = "bfloat16"; }; }'
  ! with_lib eval "($mk) ($big) { limits = { maxInputLen = 512; maxBatchSize = 16; maxKvCacheCapacity = 32768; }; }" &&
    says 'big-engine: it does not fit rtx-3090 (22.3 GiB)' &&
    says '--target rtx-3090 --memory 24 --max-batch-size 16 --max-input-len 512 --max-kv-cache-capacity 32768' &&
    ! with_lib eval "($mk) ($big) { limits.maxBatchSize = 2; }" && says 'no runtime with TensorRT is given'
}

# A store of its own on a small file system: Nix builds the export there, and the disk fills up.
test_stack_edgellm_export_on_a_full_disk() {
  slow || return
  need_edgellm || return
  [ "$(id -u)" = 0 ] || { skip 'needs root to mount a small file system' && return 1 || return; }
  local small=$tmp/small result=0 filler
  mkdir "$small"
  mount -t tmpfs -o size=8g tmpfs "$small" || { skip 'no file system can be mounted here' && return 1 || return; }
  stack_fills_up || result=1
  kill "${filler:-}" 2>/dev/null
  umount "$small"
  return $result
}

stack_small_build() { # expression
  with_edge build "$1" --store "$small" --no-link -L
}

stack_nothing_left() { ! compgen -G "$small/nix/store/*-edgellm-export" >/dev/null && ! compgen -G "$small/nix/store/*.chroot" >/dev/null; }

stack_fills_up() {
  local used inputs='nixpkgs.runCommand "inputs" { inputs = (edge { }).export.nativeBuildInputs ++ [ tiny ]; } "echo \$inputs >\$out"'
  # What the export is made of is there; then one MiB is left.
  with_edge build "$inputs" --no-link --json || return 1
  quietly "$nix" copy --no-check-sigs --to "$small" "$(grep -o '"out":"[^"]*' "$out" | tail -n1 | cut -d'"' -f4)" || return 1
  stack_small_build "$inputs" || return 1
  used=$(df --output=used -k "$small" | tail -n1)
  mount -o "remount,size=$((used + 1024))k" "$small"
  ! stack_small_build '(edge { }).export' && says 'the disk is full' && says 'free disk space' && ! grep -q Traceback "$out" &&
    stack_nothing_left || return 1
  # Room enough at first, and gone while the exporter runs.
  mount -o "remount,size=$((used + 200 * 1024))k" "$small"
  {
    until compgen -G "$small/nix/store/*.chroot/nix/store/.*.partial/llm" >/dev/null; do sleep 0.02; done
    head -c 300m /dev/zero >"$small/filler"
  } 2>/dev/null &
  filler=$!
  ! stack_small_build '(edge { }).export' && says 'the disk is full' && ! grep -q -e Traceback -e 'MiB free' "$out" && stack_nothing_left
}

# What the engine-era guard offers in place of an engine, word for word, is a derivation.
test_stack_the_offered_llmapi_expression_evaluates() {
  local offered
  ! with_lib eval '(e.mkEngine { kind = "tensorrt"; model = e.catalogue.tiny-qwen3.model; target = "h200"; runtime = "trtllm-1.3.0rc26";
    limits = { maxBatchSize = 3; maxSeqLen = 512; }; }).drvPath' || return 1
  offered=$(grep -o 'mkEngine { kind = "llmapi";.*' "$out" | head -n1 | sed 's/model = …/model = e.catalogue.tiny-qwen3.model/')
  [ -n "$offered" ] && with_lib eval "let r = e.$offered; in [ r.kind r.runtime r.request.limits.maxBatchSize r.request.limits.maxSeqLen ]" --json &&
    says '["llmapi","trtllm-1.3.0rc26",3,512]'
}

# Every option that is gone names what replaced it; a name nearly right names the right one; one of another runtime says so.
test_stack_unknown_options_say_what_to_use() {
  local options='name: value: (builtins.tryEval (e.mkEngine { kind = "tensorrt"; model = e.catalogue.tiny-qwen3.model; target = "h200"; plugins.${name} = value; }).drvPath).success'
  with_lib eval "let
      table = builtins.fromJSON (builtins.readFile (root + \"/python/enginix/data/tensorrt/build_options.json\"));
      refused = $options;
    in builtins.filter (n: refused n true || refused n \"auto\") (builtins.attrNames (table.removed // table.own))" --json && says '[]' || return 1
  local mk='plugins: (e.mkEngine { kind = "tensorrt"; model = e.catalogue.tiny-qwen3.model; target = "h200"; inherit plugins; }).drvPath'
  ! with_lib eval "($mk) { maxOutputLen = 8; }" && says '--max_output_len is gone since TensorRT-LLM 0.12.0' && says 'limits.maxSeqLen' &&
    ! with_lib eval "($mk) { gemPlugin = \"auto\"; }" && says 'Did you mean gemmPlugin?' &&
    ! with_lib eval "($mk) { maxBatchSize = 8; }" && says 'limits.maxBatchSize' &&
    ! with_lib eval "($mk) { gemmPlugin = true; }" && says 'it must be one of'
}

# mkServe, whatever the kind, tells the module the same things.
test_stack_servers_tell_what_they_are() {
  with_lib eval '
    let
      model = e.catalogue.tiny-qwen3.model;
      edge = e.override { edgellm-runtime = nixpkgs.runCommand "none" { } "" // { driver = null; }; };
      of = s: [ s.kind s.runtime s.modelName s.host s.httpPort (s.engine.kind == s.kind) (builtins.isString s.meta.mainProgram) ];
    in map of [
      (e.mkServe { engine = e.mkEngine { kind = "tensorrt"; inherit model; target = "h200"; }; port = 9000; })
      (e.mkServe { engine = e.mkEngine { kind = "llmapi"; inherit model; target = "h200"; }; })
      (edge.mkServe { engine = edge.mkEngine { kind = "edgellm"; inherit model; target = "rtx-5090"; }; host = "127.0.0.2"; })
    ]' --json &&
    says '[["tensorrt","trtllm-1.2.1","tiny-qwen3","127.0.0.1",9000,true,true],["llmapi","trtllm-1.2.1","tiny-qwen3","127.0.0.1",8000,true,true],["edgellm","edgellm-0.11.0","tiny-qwen3","127.0.0.2",8000,true,true]]'
}

test_stack_edgellm_manifest_has_the_plan() {
  need_edgellm || return
  local engine
  ENGINIX_NIX_CONFIG="extra-system-features = cuda cuda-sm120" with_edge build 'engine { }' --no-link --json || return 1
  engine=$(grep -o '"out":"[^"]*' "$out" | cut -d'"' -f4)
  quietly python3 - "$engine/enginix.json" <<'EOF2' && says 'predicted and measured'
import json, sys
made = json.load(open(sys.argv[1]))
plan = made["results"]["plan"]
assert plan["predicted"]["weights"] > 0 and plan["measured"]["hostMemoryPeak"] > 0, plan
assert made["target"]["sm"] == 120 and made["runtime"]["driver"] == "590.44.01", made
print("predicted and measured")
EOF2
}

# A runner does not know its GPU: its profile goes along, and what no GPU would take is refused without one.
test_stack_runner_without_a_target() {
  local mk='args: (e.mkRunner ({ model = e.catalogue.tiny-qwen3.model; } // args)).request'
  with_lib eval "let r = ($mk) { profile = \"throughput\"; }; in [ r.profile r.options r.limits.maxBatchSize ]" --json && says '["throughput",{},256]' &&
    with_lib eval "let r = ($mk) { profile = \"throughput\"; target = \"h200\"; }; in [ r.profile r.options.useFusedMlp ]" --json && says '[null,true]' &&
    ! with_lib eval "($mk) { plugins.gemPlugin = \"auto\"; }" && says 'Did you mean gemmPlugin?' &&
    ! with_lib eval "($mk) { profile = \"fast\"; }" && says 'unknown profile' &&
    ! with_lib eval "($mk) { port = 70000; }" && says 'from 0 to 65535'
}
