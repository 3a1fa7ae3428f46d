# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# Triton servers of the kinds that an image serves, in real Nix builds, on the stand-in image (tests/standin).
# on_a_gpu_host, built and engine_of are those of engines.sh.

# A server of two ranks; more arguments of mkTritonServer.
triton_of() {
  engine_of "e.mkTritonServer ({ repo = e.mkTritonRepo { engine = two.ungated; }; } // { $1 })" 'count = 2;' |
    sed 's|^  in |  two = mk { name = "two"; checkpoint = e.mkCheckpoint { inherit model; tensorParallel = 2; }; target = { gpu = "h200"; count = 2; }; }; in |'
}

test_triton_serves_two_ranks_inside_the_image() {
  built "$(triton_of 'gpus = [ 1 0 ]; metricsPort = null; flags.http-thread-count = 4; environment.NCCL_DEBUG = "INFO";')" || return 1
  local server=$path/bin/two-triton-server http grpc pid result=0
  quietly "$server" --dry-run && says mpirun && says '--load-model=tensorrt_llm' && says '--http-thread-count=4' &&
    says '--allow-metrics=false' && says 'CUDA_VISIBLE_DEVICES="1,0"' && says 'NCCL_DEBUG="INFO"' &&
    says '--allow-client-shm=false' || return 1
  read -r http grpc < <(python3 -c '
import socket
s = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(x.getsockname()[1] for x in s))')
  "$server" --http-port "$http" --grpc-port "$grpc" >"$tmp/triton" 2>&1 &
  pid=$!
  for _ in $(seq 1200); do
    grep -q 'answers at' "$tmp/triton" && break
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  quietly curl -s "http://127.0.0.1:$http/v2/models/ensemble/generate" -d '{"text_input":"hello"}' && says 'stand-in: hello' || result=1
  kill -TERM "$pid"
  wait "$pid" || result=1
  cat "$tmp/triton" >>"$out"
  ! pgrep -f "standin_tritonserver.*=$http " >/dev/null && return $result
}

test_triton_option_of_a_later_version() {
  ! on_a_gpu_host eval "($(triton_of 'flags.grpc-infer-thread-coun = 4;')).drvPath" && says 'tritonserver 2.71.0: unknown option' &&
    says 'Did you mean grpc-infer-thread-count?' || return 1
  ! with_lib eval '(e.mkTritonServer { repo = e.catalogue.tiny-qwen3.triton-repo; flags.grpc-infer-thread-count = 4; }).drvPath' &&
    says 'tritonserver 2.51.0: unknown option "grpc-infer-thread-count"'
}

test_triton_options_are_typed() {
  local argument expected
  while IFS='|' read -r argument expected; do
    ! with_lib eval "(e.mkTritonServer { repo = e.catalogue.tiny-qwen3.triton-repo; $argument; }).drvPath" && says "$expected" || return 1
  done <<'EOF'
flags.http-thread-count = "4"|but tritonserver takes a whole number
flags.allow-sagemaker = true|flags.allow-sagemaker: its routes passed by restricted APIs
flags.http-port = 1|enginix writes it itself: --http-port
gpus = [ "cuda:0" ]|is not a GPU's index
adminKeyFile = ./flake.nix|would be in the store, where everybody reads it
httpPort = -1|must be a whole number of at least 0
grpcport = 1|Did you mean grpcPort?
EOF
}

test_triton_gpus_are_one_a_rank() {
  ! on_a_gpu_host eval "($(triton_of 'gpus = [ 0 ];')).drvPath" && says 'gpus names 1, but the engine has 2 ranks'
}

# Limits as a real build records them.
test_triton_repo_is_held_to_the_engine() {
  local argument expected
  while IFS='|' read -r argument expected; do
    ! built "$(engine_of "e.mkTritonRepo { engine = (mk { name = \"held\"; }).ungated; $argument; }")" && says "$expected" || return 1
  done <<'EOF'
parameters.max_beam_width = 2|max_beam_width: 2 is above the engine's 1
parameters.max_attention_window_size = 100000|max_attention_window_size: 100000 is above the engine's
parameters.lora_cache_max_adapter_size = 8|built without the LoRA plug-in
parameters.kv_cache_free_gpu_fraction = 0.5|unknown parameter "kv_cache_free_gpu_fraction". Did you mean kv_cache_free_gpu_mem_fraction?
EOF
}

# A model of one's own stands beside, under its own name; a path of the store has another, so it is a directory below.
test_triton_repo_with_a_model_beside() {
  with_lib build "e.mkTritonRepo { engine = e.catalogue.tiny-qwen3.engine; name = \"tiny-$EPOCHREALTIME\"; maxTokensLimit = 9; ensembleInstances = 2; addModels = [ (nixpkgs.runCommand \"own\" { } ''
    mkdir -p \$out/own/1
    echo 'name: \"own\" backend: \"python\" max_batch_size: 0' >\$out/own/config.pbtxt
    touch \$out/own/1/model.py
  '' + \"/own\") ]; }" -o "$tmp/beside" && [ -e "$tmp/beside/own/config.pbtxt" ] &&
    grep -q '"max_tokens_limit": 9' "$tmp/beside/enginix.json" &&
    grep -q '"ensemble_instances": 2' "$tmp/beside/enginix.json" && grep -q 'count: 2' "$tmp/beside/ensemble/config.pbtxt" || return 1
  ! with_lib build "e.mkTritonRepo { engine = e.catalogue.tiny-qwen3.engine; name = \"tiny-$EPOCHREALTIME\"; addModels = [ (nixpkgs.runCommand \"bad\" { } ''
    mkdir -p \$out/bad
    echo 'name: \"bad\" bakend: \"python\"' >\$out/bad/config.pbtxt
  '' + \"/bad\") ]; }" --no-link -L && says 'did you mean backend?'
}
