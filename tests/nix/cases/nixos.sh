# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# The unit that the module renders, looked at by systemd's own tools; no nixpkgs needed.

unit() { # arguments of tests/nix/unit.nix, where to
  quietly "$nix" build --impure --out-link "$tmp/unit" --expr "import $root/tests/nix/unit.nix { $1 }" || return 1
  install -m 644 "$(readlink -f "$tmp/unit")" "$2"
}

need_systemd() {
  command -v systemd-analyze >/dev/null || {
    skip 'there is no systemd-analyze on this machine'
    return 77
  }
}

exposure() { # unit file: systemd's figure, in tenths
  quietly systemd-analyze security --offline=true --no-pager "$1"
  sed -n 's/.*Overall exposure level for .*: \([0-9]*\)\.\([0-9]\).*/\1\2/p' "$out"
}

test_nixos_unit_is_clean() {
  need_systemd || return
  unit '' "$tmp/enginix-tiny.service" || return 1
  quietly systemd-analyze verify --man=no "$tmp/enginix-tiny.service" || return 1
  [ ! -s "$out" ]
}

# What verify looks for on this machine is not there: programs of an image, and its root.
test_nixos_units_of_every_kind_are_clean() {
  need_systemd || return
  # A directory of its own: systemd reads a unit's neighbours, too.
  local arguments checked=$tmp/kinds/enginix-checked.service
  mkdir -p "$tmp/kinds"
  for arguments in 'settings = { gpus = [ 0 ]; };' "$unit_image" "$unit_edgellm" "$unit_own" "$unit_rtx" "$unit_gateway"; do
    unit "$arguments" "$checked" || return 1
    sed -i 's,"/x-command/bin/enginix","/usr/bin/true",' "$checked"
    quietly systemd-analyze verify --man=no "$checked" || return 1
    [ ! -s "$out" ] || return 1
  done
}

# What is demanded comes before anything is loaded; without it the unit is as it was.
test_nixos_unit_that_demands_a_signer() {
  local signed='signers = "/etc/enginix/signers"; signature = "/etc/enginix/a.sig";'
  unit "settings = { $signed };" "$tmp/signed.service" && cp "$tmp/signed.service" "$out" &&
    says '/bin/enginix" "verify" "/nix/store/' &&
    says '-triton-repo" "--signature" "/etc/enginix/a.sig" "--signers" "/etc/enginix/signers" "--ssh-keygen" "ssh-keygen"' || return 1
  unit "$unit_edgellm" "$tmp/own.service" && ! grep -q -- --signers "$tmp/own.service" || return 1
  unit "${unit_edgellm/settings = \{/settings = { $signed}" "$tmp/both.service" && cp "$tmp/both.service" "$out" &&
    says '"verify" "/x-engine" "--signature" "/etc/enginix/a.sig" "--signers" "/etc/enginix/signers"' && says '"check" "/x-engine"'
}

test_nixos_unit_of_an_own_server() {
  unit "$unit_edgellm" "$tmp/own.service" && cp "$tmp/own.service" "$out" && says '"--run" "/usr/bin/true" "--host" "127.0.0.1" "--port" "8000"' &&
    says 'LoadCredential=api-key:/run/secrets/key' && says '"ready" "http://127.0.0.1:8000" "--api-key-credential" "api-key" "--timeout" "600" "--run"' &&
    says 'CUDA_VISIBLE_DEVICES=0' && says '"check" "/x-engine"' && says Type=notify && says NotifyAccess=all && says StateDirectory=enginix-tiny &&
    unit "$unit_own" "$tmp/own.service" && cp "$tmp/own.service" "$out" &&
    says '"--run" "/x-command/bin/enginix" "runner" "/x-engine" "--host"' && says RootDirectory=/nix/store/x-root
}

# A key's file is named; the key itself is nowhere.
test_nixos_gateway_gets_its_keys_as_credentials() {
  unit "$unit_gateway" "$tmp/gateway.service" && cp "$tmp/gateway.service" "$out" &&
    says 'LoadCredential=operator:/run/secrets/operator' && says 'LoadCredential=client-alice:/run/secrets/alice' &&
    says 'After=enginix-tiny.service' || return 1
  quietly cat "$(sed -n 's,^ExecStart="\(.*\)/bin/gateway".*,\1,p' "$tmp/gateway.service")/bin/gateway" &&
    quietly cat "$(sed -n 's/.* gateway \(\/nix[^ ]*\) .*/\1/p' "$out")" &&
    says '"url":"http://127.0.0.1:8000"' && says '"keyFile":"client-alice"' && says '"keyFile":"operator"'
}

test_nixos_unit_with_a_typo_is_not_clean() {
  need_systemd || return
  # A directory of its own: systemd reads a unit's neighbours, too.
  local typo=$tmp/typo/enginix-tiny.service
  mkdir -p "$tmp/typo"
  unit '' "$typo" || return 1
  sed -i 's/^ProtectHome=true/ProtectHom=true/; s,^ExecStart="/nix/store/[^/]*/,ExecStart="/nix/store/none/,' "$typo"
  refuses systemd-analyze verify --man=no "$typo" && says ProtectHom && says 'is not executable'
}

# The kinds of unit: Triton with and without GPU, inside an image, an engine's own servers, the gateway.
unit_image='settings = { gpus = [ 0 ]; repo = { outPath = "/x-repo"; kind = "tensorrt"; runtime = "trtllm-1.2.1"; engine.outPath = "/x-engine"; }; };
  image = { root = "/nix/store/x-root"; rootfs = "/nix/store/x-rootfs"; directories = [ "usr" ]; };'
unit_edgellm='settings = { gpus = [ 0 ]; apiKeyFile = "/run/secrets/key"; engine = { outPath = "/x-engine"; kind = "edgellm"; runtime = "edgellm-0.11.0"; modelName = "m"; }; };
  parts.mkServe = _: { outPath = "/usr"; meta.mainProgram = "true"; };'
unit_own='settings = { gpus = [ 0 ]; ownServer = true; engine = {
    outPath = "/x-engine"; kind = "llmapi"; runtime = "trtllm-1.2.1"; modelName = "m"; runtimePackage.command = "/x-command";
  }; };
  image = { root = "/nix/store/x-root"; rootfs = "/nix/store/x-rootfs"; directories = [ "usr" ]; };'
unit_rtx='settings = { gpus = [ 0 ]; engine = {
    outPath = "/x-engine"; kind = "rtx"; runtime = "rtx-1.7.1.116"; modelName = "m"; servingPython = "/x-python";
  }; };
  parts.mkTritonRepo = _: { outPath = "/x-repo"; };'
unit_gateway='gateway = { keyFile = "/run/secrets/operator"; clients.alice = {
    keyFile = "/run/secrets/alice"; models = [ ]; requestsPerMinute = 6; tokensPerMinute = 0; parallelRequests = 0;
  }; };'

test_nixos_unit_is_hardened() {
  need_systemd || return
  local arguments tenths
  for arguments in '' 'settings = { gpus = [ 0 ]; };' 'settings = { gpus = [ 0 ]; host = "0.0.0.0"; };' \
    "$unit_image" "$unit_edgellm" "$unit_own" "$unit_rtx" "$unit_gateway"; do
    unit "$arguments" "$tmp/enginix-tiny.service" || return 1
    tenths=$(exposure "$tmp/enginix-tiny.service")
    echo "exposure of { $arguments }: $tenths tenths" | tee -a "$out"
    { [ -n "$tenths" ] && [ "$tenths" -le 18 ]; } || return 1
  done
}

test_nixos_unit_sees_its_gpus_only_when_it_has_some() {
  unit '' "$tmp/cpu.service" && cp "$tmp/cpu.service" "$out" && says PrivateDevices=true && ! grep -q DeviceAllow "$out" &&
    unit 'settings = { gpus = [ 0 "GPU-1" ]; };' "$tmp/gpu.service" && cp "$tmp/gpu.service" "$out" &&
    says PrivateDevices=false && says DevicePolicy=closed && says 'DeviceAllow=char-nvidia-uvm rw' && says '"--gpus" "0,GPU-1"'
}

test_nixos_unit_of_an_image_has_the_image_as_root() {
  unit 'name = "big";
    settings = {
      gpus = [ 0 1 ];
      host = "0.0.0.0";
      repo = {
        outPath = "/nix/store/x-big-triton-repo"; kind = "tensorrt"; runtime = "trtllm-1.2.1";
        engine.outPath = "/nix/store/x-big-engine";
      };
    };
    image = { root = "/nix/store/x-root"; rootfs = "/nix/store/x-rootfs"; directories = [ "usr" "opt" ]; };' "$tmp/big.service" &&
    cp "$tmp/big.service" "$out" && says RootDirectory=/nix/store/x-root &&
    says 'BindReadOnlyPaths=-/nix/store/x-rootfs/opt:/opt' && says '"--tritonserver" "/opt/tritonserver"' &&
    says 'PATH=/opt/venv-tritonserver/bin' && says 'TemporaryFileSystem=/dev/shm:mode=1777' && says TemporaryFileSystem=/run && says '"--gpus" "0,1"' && ! grep -q IPAddressDeny "$out"
}

# systemd must wait longer than the server itself does, or answers under way would be cut off.
test_nixos_unit_stops_later_than_the_server() {
  local seconds
  for seconds in 1 30 900; do
    unit "settings = { exitTimeout = $seconds; startTimeout = $seconds; };" "$tmp/t.service" || return 1
    cp "$tmp/t.service" "$out"
    says "\"--exit-timeout\" \"$seconds\"" && [ "$(sed -n 's/TimeoutStopSec=//p' "$out")" -gt $((seconds + 10)) ] &&
      [ "$(sed -n 's/TimeoutStartSec=//p' "$out")" -gt "$seconds" ] || return 1
  done
}

# What would fail again is not started again: exit codes of enginix; of other programs, a number of tries.
test_nixos_unit_does_not_restart_in_vain() {
  local status
  unit 'settings = { memoryMax = "8G"; tasksMax = 512; };' "$tmp/t.service" && cp "$tmp/t.service" "$out" && says MemoryMax=8G && says TasksMax=512 &&
    for status in 1 2 3; do says "RestartPreventExitStatus=$status" || return 1; done &&
    unit "${unit_gateway/keyFile/memoryMax = \"2G\"; tasksMax = 256; keyFile}" "$tmp/t.service" && cp "$tmp/t.service" "$out" &&
    says RestartPreventExitStatus=3 && says MemoryMax=2G && says TasksMax=256 &&
    unit "$unit_own" "$tmp/t.service" && cp "$tmp/t.service" "$out" && says StartLimitBurst=10 && ! grep -q RestartPrevent "$out" && says '"check" "/x-engine"' &&
    unit '' "$tmp/t.service" && cp "$tmp/t.service" "$out" && ! grep -q 'MemoryMax\|TasksMax\|StartLimit' "$out"
}

# Triton of this machine, and the Python that has TensorRT for RTX; compiled kernels are in the unit's state.
test_nixos_unit_of_an_rtx_engine() {
  unit "$unit_rtx" "$tmp/rtx.service" && cp "$tmp/rtx.service" "$out" && says '"serve" "/x-repo" "--' && says '"--tritonserver" "/nix/store/' &&
    says '"--python" "/x-python/bin/python3"' && says '"--gpus" "0"' && says StateDirectory=enginix-tiny &&
    unit '' "$tmp/t.service" && ! grep -q -- --python "$tmp/t.service"
}

# A program that notifies only when it can answer must be started by a unit that waits for that.
test_nixos_unit_waits_for_readiness() {
  unit '' "$tmp/t.service" && cp "$tmp/t.service" "$out" && says Type=notify && says NotifyAccess=main && says KillMode=mixed
}

repository() { # kind of the engine, arguments of mkTritonRepo, what to take of it
  with_lib eval "(e.mkTritonRepo ({
    engine = {
      kind = \"$1\"; modelName = \"m\"; runtime = \"trtllm-1.2.1\"; runtimePackage = e.mkRuntime { id = \"trtllm-1.2.1\"; }; outPath = \"/nix/store/x-m-engine\";
      request.limits.maxBatchSize = 16;
    };
  } // $2)).${3:-flags}" --raw
}

test_nixos_repository_takes_what_its_kind_has() {
  repository tensorrt '{ maxBatchSize = 16; decoupled = false; parameters = { kv_cache_free_gpu_mem_fraction = 0.85; enable_kv_cache_reuse = true; }; }' &&
    says "'--max-batch-size' '16'" && says "'--no-decoupled'" && says "'kv_cache_free_gpu_mem_fraction=0.85'" &&
    says "'enable_kv_cache_reuse=true'" && ! grep -q -- --device "$out" &&
    repository llmapi '{ decoupled = false; }' && says "'--no-decoupled'" &&
    repository reference '{ device = "cuda"; ensembleInstances = 2; maxQueueSize = 9; }' && says "'--device' 'cuda'" &&
    says "'--ensemble-instances' '2'" && says "'--max-queue-size' '9'" &&
    repository tensorrt '{ preprocessingInstances = 2; postprocessingInstances = 3; maxQueueDelayMicroseconds = 7; blsInstances = 4; }' &&
    says "'--preprocessing-instances' '2'" && says "'--postprocessing-instances' '3'" &&
    says "'--max-queue-delay-microseconds' '7'" && says "'--bls-instances' '4'"
}

test_nixos_repository_refuses_at_evaluation() {
  ! repository tensorrt '{ maxBatchSize = 17; }' && says "is above the engine's 16" &&
    ! repository tensorrt '{ parameters.kv_cache_free_memory_fraction = 0.5; }' && says 'unknown parameter' &&
    ! repository tensorrt '{ parameters.batch_scheduler_policy = "max_utilisation"; }' && says 'Did you mean max_utilization?' &&
    ! repository tensorrt '{ parameters.gpt_model_type = "V1"; }' && says 'enginix writes it itself' &&
    ! repository tensorrt '{ device = "cuda"; }' && says 'of kind tensorrt: unknown argument "device"' &&
    ! repository tensorrt '{ ensembleInstances = 2; }' && says 'of kind tensorrt: unknown argument "ensembleInstances"' || return 1
  local name
  for name in preprocessingInstances postprocessingInstances maxQueueDelayMicroseconds blsInstances; do
    ! repository reference "{ $name = 2; }" && says "of kind reference: unknown argument \"$name\"" || return 1
  done
  ! repository reference '{ ensembleInstances = -1; }' && says ensembleInstances &&
    ! repository llmapi '{ maxBatchSize = 4; }' && says 'unknown argument "maxBatchSize"' &&
    ! repository edgellm '{ }' && says 'has no Triton repository'
}
