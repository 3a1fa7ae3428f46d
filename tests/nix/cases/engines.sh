# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# Engines of kind tensorrt and llmapi in real Nix builds, on the stand-in runtime (tests/standin). TensorRT-LLM itself is
# not here.

features="extra-system-features = cuda cuda-sm90 cuda-sm100 cuda-sm120"

# An engine of its own name each time, on the stand-in runtime; more arguments of mkEngine, then of the stand-in driver.
engine_of() {
  echo "let
    standin = import (root + \"/tests/standin\") { pkgs = nixpkgs; };
    model = e.catalogue.tiny-qwen3.model;
    runtime = id: standin.runtime e id { ${2-} };
    mk = args: e.mkEngine ({
      kind = \"tensorrt\";
      inherit model;
      target = \"h200\";
      name = \"tiny-$EPOCHREALTIME\";
      runtime = runtime \"trtllm-1.2.1\";
      gates = { };
    } // args);
  in $1"
}

on_a_gpu_host() { ENGINIX_NIX_CONFIG=$features with_lib "$@"; }

built() { # expression → store path in $path
  on_a_gpu_host build "$1" --no-link --json -L || return 1
  path=$(grep -o '"\(out\|timing\)":"[^"]*' "$out" | tail -n1 | cut -d'"' -f4)
}

test_engine_in_the_sandbox() {
  built "$(engine_of 'mk { plugins.gemmPlugin = "auto"; limits = { maxBatchSize = 4; maxSeqLen = 1024; }; }')" || return 1
  says 'NVIDIA H200, SM 90' && says '--gemm_plugin auto' && says -- '--max_seq_len 1024' &&
    [ -s "$path/engine/rank0.engine" ] && [ -e "$path/engine/config.json" ] && [ -e "$path/tokenizer/tokenizer.json" ] &&
    [ -e "$path/tokenizer/generation_config.json" ] || return 1
  # An engine is data: nothing else is in its closure.
  quietly "$nix" path-info -r "$path" && [ "$(wc -l <"$out")" = 1 ] || return 1
  quietly cat "$path/enginix.json" && says '"sm": 90' && says '"gpu": "NVIDIA H200"' && says '"tensorrtLlm": "1.2.1"' &&
    says '"driver": "590.44.01"' && says enginix/tiny-qwen3 && ! grep -q /nix/store "$out"
}

test_engine_outside_the_sandbox() {
  ENGINIX_SANDBOX=relaxed built "$(engine_of 'mk { isolation = "relaxed"; }')"
}

test_engine_outside_is_refused_by_a_strict_sandbox() {
  ! on_a_gpu_host build "$(engine_of 'mk { isolation = "relaxed"; }')" --no-link && says "has '__noChroot' set"
}

test_engine_on_the_older_runtime() {
  built "$(engine_of 'mk { runtime = runtime "trtllm-1.1.0"; }' 'version = "580.95.05";')" && quietly cat "$path/enginix.json" &&
    says '"tensorrtLlm": "1.1.0"'
}

test_engine_of_two_ranks() {
  built "$(engine_of 'mk { checkpoint = e.mkCheckpoint { inherit model; tensorParallel = 2; }; target = { gpu = "h200"; count = 2; }; workers = 2; }' 'count = 2;')" &&
    [ -s "$path/engine/rank1.engine" ] && says '--workers 2'
}

test_engine_by_the_llm_api() {
  built "$(engine_of 'mk { strategy = "llm-api"; }')" && says tensorrt_llm_api.py && [ -s "$path/engine/rank0.engine" ]
}

test_engine_needs_a_builder_with_the_gpu() {
  ! with_lib build "$(engine_of 'mk { }')" --no-link && says 'cuda-sm90' && says 'is required to build'
}

# The machine is an input of its own: looked at while the weights are still being fetched.
test_engine_for_another_gpu_than_the_machines() {
  ! on_a_gpu_host build "$(engine_of 'mk { }' 'name = "NVIDIA B200"; capability = "10.0";')" --no-link -L &&
    says 'enginix-machine-sm90> error: GPU: the target h200 is SM 90; this machine has NVIDIA B200 (SM 100)'
}

test_engine_old_driver_is_refused() {
  ! on_a_gpu_host build "$(engine_of 'mk { }' 'version = "570.1";')" --no-link -L &&
    says 'needs driver 590.44.01 or later; this machine has 570.1'
}

test_engine_old_driver_may_be_accepted() {
  built "$(engine_of 'mk { acceptDriver = true; }' 'version = "570.1";')"
}

test_engine_full_gpu_is_refused() {
  ! on_a_gpu_host build "$(engine_of 'mk { }' 'free = 1;')" --no-link -L && says 'weights alone take'
}

test_engine_wrong_image_is_refused() {
  ! on_a_gpu_host build "$(engine_of 'mk { runtime = e.mkRuntime { id = "trtllm-1.2.1"; rootfs = standin.rootfs "trtllm-1.1.0"; driver = standin.driver { }; }; }')" --no-link -L &&
    says 'no tensorrt_llm in'
}

test_engine_timing_cache_goes_out_and_in() {
  local first
  built "$(engine_of '(mk { }).timing')" || return 1
  first=$path
  [ -s "$first" ] || return 1
  built "$(engine_of "(mk { timingCache = builtins.storePath \"$first\"; }).timing")" && says "--input_timing_cache /w/timing.in" || return 1
  first=$path
  [ "$(wc -l <"$first")" = 2 ]
}

misbehaving() { # how, what the error says, more arguments of mkEngine
  ! on_a_gpu_host build "$(engine_of "mk { ${3-} }" "misbehave = \"$1\";")" --no-link -L && says "$2"
}

test_engine_hang() {
  local mark=$RANDOM$RANDOM
  misbehaving "hang:$mark" 'it hangs' 'stallMinutes = 0.1;' && says 'Building engine' && ! pgrep -f "standin_trtllm_build $mark" >/dev/null
}
test_engine_out_of_memory() { misbehaving oom "the GPU's memory is exhausted" && says 'TensorRT-LLM #1543'; }
test_engine_killed() { misbehaving killed 'the kernel killed it'; }
test_engine_partial() { misbehaving partial 'a partial engine'; }
test_engine_nothing_written() { misbehaving nothing 'wrote no engine'; }
test_engine_home_written() { misbehaving home 'a library writes to HOME'; }
test_engine_input_path_leaks() { misbehaving leak 'contains the path of an input'; }
test_engine_other_version() { misbehaving version 'the engine says TensorRT-LLM 9.9.9'; }
test_engine_cache_in_the_working_directory() { built "$(engine_of 'mk { }' 'misbehave = "model-cache";')"; }
test_engine_leaves_no_process() {
  local mark=$RANDOM$RANDOM
  built "$(engine_of 'mk { }' "misbehave = \"daemon:$mark\";")" && ! pgrep -f "standin_daemon $mark" >/dev/null
}

test_engine_matrix_requires_each_gpu() {
  on_a_gpu_host eval "let m = $(engine_of 'e.mkEngineMatrix { inherit model; runtime = runtime "trtllm-1.2.1"; gates = { }; targets = [ "h200" "b200" ]; }'); in
    builtins.mapAttrs (_: d: d.requiredSystemFeatures) m" --json && says '{"b200":["cuda","cuda-sm100"],"h200":["cuda","cuda-sm90"]}'
}

test_engine_switching_kind_is_one_attribute() {
  built "$(engine_of 'mk { kind = "llmapi"; limits.maxBatchSize = 3; llmArgs.enable_chunked_prefill = true; }')" || return 1
  quietly cat "$path/llm_args.yaml" "$path/enginix.json" && says '"max_batch_size": 3' && says '"enable_chunked_prefill": true' &&
    says '"kind": "llmapi"' && [ -e "$path/model/model.safetensors" ]
}

# A kind's description is text for people; none is in what builds an engine or asks it, which takes hours.
test_engine_does_not_depend_on_the_description_of_a_kind() {
  with_lib eval '
    let
      names = builtins.attrNames (import (root + "/nix/kinds"));
      has = package: builtins.filter (kind: builtins.pathExists (package.source + "/kinds/${kind}/kind.py")) names;
      part = file: import (root + file) e;
    in map has [
      (part "/nix/runtime/package.nix" "driver")
      (part "/nix/kinds/edgellm/package.nix")
      (part "/nix/kinds/rtx/package.nix")
      (part "/nix/kinds/shared/asker-package.nix" "tensorrt-llm")
      (part "/nix/kinds/shared/asker-package.nix" "edgellm")
      (part "/nix/runtime/package.nix" "command")
    ]' && says '[ [ ] [ ] [ ] [ ] [ ] [ "edgellm" "llmapi" "reference" "rtx" "tensorrt" ] ]'
}

test_engine_era_says_how_to_go_on() {
  ! on_a_gpu_host eval "($(engine_of 'mk { runtime = "trtllm-1.3.0rc26"; limits.maxBatchSize = 3; }')).drvPath" &&
    says 'has no engine path' && says 'kind = "llmapi"; model' && says 'maxBatchSize = 3' && says tensorrt-backend-removal
}

serves() { # command → answers on its port, ends by SIGTERM
  local port pid result=0
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  "$@" --port "$port" >"$tmp/serving" 2>&1 &
  pid=$!
  for _ in $(seq 1200); do
    curl -sf "http://127.0.0.1:$port/health" >/dev/null && break
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  quietly curl -sf "http://127.0.0.1:$port/v1/chat/completions" -d '{"messages":[{"role":"user","content":"hello"}]}' &&
    says 'stand-in: hello' || result=1
  kill -TERM "$pid"
  wait "$pid"
  cat "$tmp/serving" >>"$out"
  return $result
}

test_engine_is_served() {
  built "$(engine_of 'e.mkServe { engine = mk { name = "tiny"; }; }')" && serves "$path/bin/tiny-serve" && says '--backend trt'
}

test_llmapi_is_served() {
  built "$(engine_of 'e.mkServe { engine = mk { name = "tiny"; kind = "llmapi"; }; }')" && serves "$path/bin/tiny-serve" &&
    says '--backend pytorch' && says llm_args.yaml
}

test_engine_served_on_another_gpu_is_refused() {
  built "$(engine_of 'e.mkServe { engine = mk { name = "tiny"; }; }')" || return 1
  local serve=$path
  built "$(engine_of 'standin.driver { name = "NVIDIA B200"; capability = "10.0"; }')" || return 1
  refuses "$serve/bin/tiny-serve" --driver "$path" && says 'sm: built for 90, here NVIDIA B200 (SM 100)'
}

test_runner_builds_once() {
  built "$(engine_of 'e.mkRunner { inherit model; name = "tiny"; runtime = runtime "trtllm-1.2.1"; }' 'misbehave = "slow";')" || return 1
  local runner=$path/bin/tiny-runner cache=$tmp/cache-$EPOCHREALTIME first second
  XDG_CACHE_HOME=$cache "$runner" --build-only >"$tmp/one" 2>"$tmp/one.err" &
  first=$!
  XDG_CACHE_HOME=$cache "$runner" --build-only >"$tmp/two" 2>"$tmp/two.err" &
  second=$!
  wait "$first" && wait "$second" || return 1
  cat "$tmp"/one* "$tmp"/two* >"$out"
  says 'waiting for it' && [ "$(grep -c 'stage: build' "$out")" = 1 ] && cmp -s "$tmp/one" "$tmp/two" || return 1
  XDG_CACHE_HOME=$cache serves "$runner" && ! grep -q 'stage: build' "$out"
}

# A registry is not here: crane's stand-in exports a directory as tar, as `crane export` does.
crane_standin() {
  mkdir -p "$tmp/crane/bin" "$tmp/image/usr/bin" "$tmp/image/etc"
  echo hello >"$tmp/image/etc/motd"
  ln -sfn usr/bin "$tmp/image/bin"
  cp "$(command -v busybox)" "$tmp/image/usr/bin/busybox"
  cat >"$tmp/crane/bin/crane" <<EOF
#!/bin/sh
case \$1 in
digest) echo sha256:$(printf 'a%.0s' $(seq 64)) ;;
config) echo '{"config":{"Env":["PATH=/usr/bin:/bin","OPAL_PREFIX=/opt/hpcx/ompi"]}}' ;;
export) tar -cf - -C "\${STANDIN_IMAGE:-$tmp/image}" . ;;
esac
EOF
  chmod +x "$tmp/crane/bin/crane"
}

test_runtime_pin_is_what_nix_builds() {
  crane_standin
  PATH=$tmp/crane/bin:$PATH PYTHONPATH=python quietly python3 -m enginix runtime pin trtllm-1.2.1 -o "$tmp/pin.json" || return 1
  with_lib build "
    let crane = nixpkgs.runCommand \"crane-standin\" { image = $tmp/image; } ''
          mkdir -p \$out/bin
          printf '%s\n' '#!/bin/sh' \"tar -cf - -C \$image .\" > \$out/bin/crane
          chmod +x \$out/bin/crane
        '';
        run = (e.override { inherit crane; }).mkRuntime { id = \"trtllm-1.2.1\"; pin = $tmp/pin.json; };
    in nixpkgs.runCommand \"pinned\" (fresh { inherit run; }) ''
      [ \"\$(\$run/bin/trtllm-1.2.1-run busybox cat /etc/motd)\" = hello ]
      \$run/bin/trtllm-1.2.1-run busybox env | grep -x OPAL_PREFIX=/opt/hpcx/ompi
      touch \$out
    ''" --no-link -L
}

test_runtime_without_a_pin_says_how_to_pin() {
  ! with_lib build '(e.mkRuntime { id = "trtllm-1.2.1"; }).rootfs' --no-link -L &&
    says 'no hash is recorded' && says 'enginix runtime pin trtllm-1.2.1'
}

test_runtime_pin_of_another_runtime() {
  crane_standin
  PATH=$tmp/crane/bin:$PATH PYTHONPATH=python quietly python3 -m enginix runtime pin trtllm-1.2.1 -o "$tmp/pin.json" || return 1
  ! with_lib eval "(e.mkRuntime { id = \"trtllm-1.1.0\"; pin = $tmp/pin.json; }).drvPath" && says 'not of trtllm-1.1.0'
}

# Inside a build, as a build user: exit statuses, read-only image, private work directory, signals.
in_a_build() {
  with_lib build "$(engine_of 'nixpkgs.runCommand "inside" (fresh { run = runtime "trtllm-1.2.1"; }) '"''$1''")" --no-link -L
}

test_runtime_in_a_build() {
  in_a_build '
    r=$run/bin/trtllm-1.2.1-run
    id=$($r id -un); [ "$id" = enginix ]
    $r sh -c "exit 7" && exit 1 || [ $? = 7 ]
    $r sh -c "kill -9 \$\$" && exit 1 || [ $? = 137 ]
    ! $r touch /usr/x
    $r sh -c "touch \$HOME/x; test -d /run/opengl-driver/lib; test -d /nix/store; test \$HOME = /w/home"
    $r sh -c "test ! -e /build/env-vars; test ! -e /etc/ssl"
    touch $out'
}

test_runtime_passes_signals_on() {
  in_a_build '
    $run/bin/trtllm-1.2.1-run sh -c "trap \"echo ended well; exit 3\" TERM; echo up; while :; do sleep 0.1; done" > log &
    pid=$!
    until grep -q up log; do sleep 0.1; done
    kill -TERM $pid
    wait $pid && exit 1 || [ $? = 3 ]
    grep -q "ended well" log
    touch $out'
}

test_runtime_without_user_namespaces_says_what_to_enable() {
  ! in_a_build '
    cat > locked.sh <<EOF
echo 0 > /proc/sys/user/max_user_namespaces
exec $run/bin/trtllm-1.2.1-run true
EOF
    unshare -Ur bash locked.sh
    touch $out' && says 'user namespaces are not allowed here' && says 'user.max_user_namespaces'
}

# The gates of its checkpoint are a reference engine, that of answers_gate_an_engine.
test_engine_gated_checkpoint() {
  built "$(engine_of 'mk { name = "answered"; gates.logits.tolerance = 0.001; }')" && quietly cat "$path/enginix.json" && says '"logits": "passed"'
}

test_engine_with_everything() {
  mkdir -p "$tmp/adapter"
  echo '{}' >"$tmp/adapter/adapter_config.json"
  head -c 64 /dev/zero >"$tmp/adapter/adapter_model.safetensors" # a builder reads it, which the stand-in does not
  built "$(engine_of "mk { profile = \"long-context\"; lora = { dirs = [ $tmp/adapter ]; targetModules = [ \"attn_q\" ]; maxRank = 8; };
    speculative = { mode = \"draft_tokens_external\"; maxDraftLen = 4; }; plugins.gemmPlugin = \"auto\"; }")" || return 1
  says '--lora_dir /w/lora/0' && says '--lora_plugin auto' && says '--max_draft_len 4' && says '--max_batch_size 2' &&
    says '--lora_target_modules attn_q' && quietly cat "$path/enginix.json" && says adapter_config.json && ! grep -q /nix/store "$out"
}

# With bounds of its own: answers_gate_an_engine.
test_reference_engine_gates_as_asked() {
  with_lib build 'e.mkEngine { kind = "reference"; model = e.catalogue.tiny-qwen3.model; name = "ungated-'"$EPOCHREALTIME"'"; gates = { }; }' --no-link -L &&
    says 'not gated' &&
    ! with_lib eval '(e.mkEngine { kind = "reference"; model = e.catalogue.tiny-qwen3.model; gates.logit = { }; }).drvPath' &&
    says 'Did you mean logits?'
}

# The stand-in whose Python has what the reference executor needs: asked, it answers from what was built into the engine.
gated_engine_of() { # attributes of mkEngine, stand-in driver's arguments, name
  echo "let
    standin = import (root + \"/tests/standin\") { pkgs = nixpkgs; };
    model = e.catalogue.tiny-qwen3.model;
    mk = args: e.mkEngine ({
      kind = \"tensorrt\";
      inherit model;
      target = \"h200\";
      name = \"gated-${3-$EPOCHREALTIME}\";
      runtime = standin.answering e \"trtllm-1.2.1\" { ${2-} };
    } // args);
  in $1"
}

# Two thresholds are two judgements of one engine that is built once and asked once.
test_engine_gated_by_what_it_says() {
  slow || return
  built "$(gated_engine_of 'let
      first = mk { name = "gated"; plugins.gatherContextLogits = true; };
      again = mk { name = "gated"; plugins.gatherContextLogits = true; gates = { greedy.top1 = 0.5; smoke = { }; }; };
    in nixpkgs.runCommand "two-judgements" (fresh { inherit first again; }) "mkdir $out; ln -s $first $out/first; ln -s $again $out/again"')" || return 1
  [ "$(grep -c 'stage: build' "$out")" -le 1 ] && [ "$(grep -c 'asking gated' "$out")" -le 1 ] || return 1
  quietly cat "$path/first/enginix.json" && says '"greedy": "passed"' && says '"perplexity": "passed"' && says '"promptTokens"' || return 1
  quietly cat "$path/again/enginix.json" && says '"greedy": "passed"' && ! grep -q perplexity "$out" || return 1
  [ -s "$path/first/engine/rank0.engine" ] && [ -s "$path/first/gates.json" ] && [ -s "$path/first/report.html" ] &&
    [ "$(readlink "$path/first/engine")" = "$(readlink "$path/again/engine")" ] &&
    grep -q standin_llm.EngineLLM "$path/first/gates.json"
}

test_engine_gate_that_fails_leaves_nothing() {
  slow || return
  ! on_a_gpu_host build "$(gated_engine_of "mk { name = \"gated\"; plugins.gatherContextLogits = true; gates.greedy.top1 = 1.$RANDOM; }")" --no-link -L &&
    says 'gate greedy: FAILED' && says 'error: gate greedy failed'
}

test_engine_built_wrong_is_rejected_by_gates() {
  slow || return
  ! on_a_gpu_host build "$(gated_engine_of 'mk { }' 'misbehave = "shuffled";')" --no-link -L &&
    says 'gate greedy: FAILED' && says 'gate task: FAILED' && says 'error: gate '
}

# Engines of two ranks for two kinds of GPU, of which the first is built; whole_matrix_of_gated_engines and whole_two_ranks
# have the same one.
gated_matrix='(gates: e.mkEngineMatrix { inherit model gates; runtime = standin.answering e "trtllm-1.2.1" { count = 2; }; name = "matrix";
  checkpoint = e.mkCheckpoint { inherit model; tensorParallel = 2; }; limits.maxBatchSize = 2;
  targets.here.target = { gpu = "h200"; count = 2; }; targets.there.target = { gpu = "b200"; count = 2; }; })'

test_engine_gates_without_evidence_fail() {
  slow || return
  ! on_a_gpu_host build "$(gated_engine_of "($gated_matrix { perplexity = { }; }).here")" --no-link -L &&
    says 'gate perplexity failed' && says 'gatherContextLogits = true'
}

test_engine_for_pytorch_has_the_context_that_its_backend_takes() {
  local of='kind: args: (mk ({ inherit kind; gates = null; model = model // { model = model.model // { pytorchContext = 1024; }; }; } // args)).request.limits.maxSeqLen'
  with_lib eval "$(engine_of "let of = $of; in [ (of \"llmapi\" { }) (of \"tensorrt\" { }) ]")" --json && says '[1024,2048]' &&
    ! with_lib eval "$(engine_of "let of = $of; in of \"llmapi\" { limits.maxSeqLen = 2048; }")" && says 'The PyTorch backend clips'
}

test_engine_gates_evaluate_without_a_gpu() {
  with_lib eval "$(engine_of 'map (d: builtins.isString d.drvPath) [ (mk { gates = null; }) (mk { gates = null; }).ungated (mk { gates = null; }).answers
    (mk { kind = "llmapi"; gates = null; }) (mk { kind = "llmapi"; target = null; gates = null; }) ]')" --json &&
    says '[true,true,true,true,true]' && says 'not gated: no target is given' &&
    ! with_lib eval "$(engine_of '(mk { gates.gready = { }; }).drvPath')" && says 'Did you mean greedy?' &&
    ! with_lib eval "$(engine_of '(mk { kind = "llmapi"; target = null; gates.smoke = { }; }).drvPath')" && says 'no target is given' &&
    ! with_lib eval "$(engine_of '(mk { kind = "llmapi"; gates.coverage = { }; }).drvPath')" && says 'coverage' &&
    with_lib eval "$(engine_of 'let a = mk { gates.greedy.top1 = 0.5; name = "x"; }; b = mk { gates = { smoke = { }; logits = { }; }; name = "x"; }; in [ (a.drvPath == b.drvPath) (a.answers.drvPath == b.answers.drvPath) (a.ungated.drvPath == b.ungated.drvPath) ]')" --json &&
    says '[false,true,true]'
}
