# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# The flake over nixpkgs' real lib, the module over NixOS' option types: NIXPKGS_LIB names the directory that holds its default.nix
# (the repository nix-community/nixpkgs.lib has it alone).

need_lib() {
  [ -e "${NIXPKGS_LIB:-}/default.nix" ] || {
    skip 'NIXPKGS_LIB does not name nixpkgs'"'"' lib directory'
    return 77
  }
}

# A stand-in package set whose lib is the real one.
with_real_lib() {
  rm -rf "$tmp/hostpkgs"
  cp -r tests/hostpkgs "$tmp/hostpkgs"
  cp -rL "$NIXPKGS_LIB" "$tmp/hostpkgs/nixpkgs-lib"
}

module() { # settings, what to take of the result
  quietly "$nix" eval --impure --json --expr "
    (import $root/tests/nix/module.nix { lib = import $NIXPKGS_LIB; settings = { tiny, tensorrt, engine, reference }: let lib = import $NIXPKGS_LIB; in $1; }).$2"
}
# The assertions that fail, and nothing else.
fails() { # settings, words
  module "$1" failing || return 1
  local word
  for word in "${@:2}"; do says "$word" || return 1; done
  [ "$(grep -o '","' "$out" | wc -l)" -eq 0 ] && ! grep -q '^\[\]' "$out"
}
holds() { module "$1" failing && [ "$(tail -n 1 "$out")" = '[]' ]; }

test_real_lib_flake_check() {
  need_lib || return
  with_real_lib
  quietly "$tmp/hostpkgs/nix" flake check --no-build
}

test_real_lib_builds_the_same_derivations() {
  need_lib || return
  with_real_lib
  quietly "$tmp/hostpkgs/nix" eval --raw .#tiny-qwen3-engine.name && says tiny-qwen3-engine &&
    quietly "$tmp/hostpkgs/nix" eval .#checks.x86_64-linux.pure.name && says enginix-pure-tests
}

test_real_lib_module_renders_a_loopback_unit() {
  need_lib || return
  local one='{ servers.a.repo = tiny; }'
  holds "$one" && module "$one" services && says '\"--host\" \"127.0.0.1\"' && says '"DynamicUser":true' &&
    module "$one" ports && says '[]' && module "$one" checks && says 'serve /nix/store'
}

# `make unit` shows what the module renders: the same function over the same defaults.
test_real_lib_module_and_make_unit_agree() {
  need_lib || return
  quietly "$nix" eval --impure --json --expr "
    let
      lib = import $NIXPKGS_LIB;
      server = (builtins.head (builtins.attrValues (import $root/tests/nix/module.nix {
        inherit lib; settings = { tiny, ... }: { servers.tiny.repo = tiny; };
      }).services));
      plain = (import $root/tests/nix/unit.nix {
        settings = rec {
          repo = { outPath = package \"tiny-triton-repo\"; runtime = \"reference\"; };
          kind = \"reference\"; package = n: \"/nix/store/00000000000000000000000000000000-\${n}\";
          tritonserver = package \"tritonserver\";
        } // { package = { outPath = \"/nix/store/00000000000000000000000000000000-enginix\"; meta.mainProgram = \"enginix\"; }; };
      }).service;
      # NixOS adds what every service has; PATH is its own.
      common = builtins.intersectAttrs plain server // { environment = removeAttrs server.environment [ \"PATH\" ]; };
    in { same = common == plain; inherit common plain; }" && says '"same":true'
}

test_real_lib_module_several_servers() {
  need_lib || return
  local two='{ servers.a.repo = tiny; servers.b = { repo = tiny; httpPort = 9000; grpcPort = 9001; metricsPort = 9002; }; servers.off = { repo = tiny; enable = false; }; }'
  holds "$two" && module "$two" services && says '"enginix-a"' && says '"enginix-b"' && ! grep -q enginix-off "$out"
}

test_real_lib_module_ports_are_unique() {
  need_lib || return
  fails '{ servers.a = { repo = tiny; grpcPort = 8000; }; }' 'a.httpPort and a.grpcPort are both 8000' 'give each its own port' &&
    fails '{ servers.a.repo = tiny; servers.b.repo = tiny; }' 'a.httpPort and b.httpPort are both 8000' 'b.metricsPort are both 8002'
}

test_real_lib_module_firewall_stays_closed() {
  need_lib || return
  fails '{ servers.a = { repo = tiny; openFirewall = true; }; }' 'which is unreachable from outside' &&
    module '{ servers.a = { repo = tiny; openFirewall = true; host = "0.0.0.0"; }; }' ports && says '[8000,8001]' &&
    module '{ servers.a = { repo = tiny; host = "0.0.0.0"; }; }' ports && says '[]'
}

test_real_lib_module_gpus_fit_the_ranks() {
  need_lib || return
  holds '{ servers.a = { repo = tensorrt 2; gpus = [ 0 1 ]; }; }' &&
    fails '{ servers.a = { repo = tensorrt 2; gpus = [ 0 ]; }; }' 'gpus names 1, but the engine has 2 ranks (tensor parallel 2' &&
    fails '{ servers.a = { repo = tensorrt 2; gpus = [ 1 1 ]; shareGpus = true; }; }' 'names a GPU twice: 1, 1' &&
    fails '{ servers.a = { repo = tensorrt 9; gpus = [ 0 1 2 3 4 5 6 7 8 ]; }; }' '9 ranks are for machines of 8 GPUs' &&
    fails '{ servers.a = { repo = lib.recursiveUpdate (tensorrt 2) { engine.parallel.gpusPerNode = 1; }; gpus = [ 0 1 ]; }; }' 'mkCheckpoint { gpusPerNode = 2;' &&
    holds '{ servers.a = { repo = lib.recursiveUpdate (tensorrt 9) { engine.parallel.gpusPerNode = 9; }; gpus = [ 0 1 2 3 4 5 6 7 8 ]; }; }' &&
    fails '{ servers.a = { repo = tiny; gpus = [ 0 ]; }; }' 'runs on the CPU' &&
    holds '{ servers.a = { repo = tiny // { device = "cuda"; }; gpus = [ 0 ]; }; }'
}

test_real_lib_module_gpus_are_shared_only_when_asked() {
  need_lib || return
  local ports='httpPort = 1; grpcPort = 2; metricsPort = 3;'
  fails "{ servers.a = { repo = tensorrt 1; gpus = [ 0 ]; memory = 9; }; servers.b = { repo = tensorrt 1; gpus = [ 0 ]; memory = 9; shareGpus = true; $ports }; }" 'a and b use GPU 0' &&
    holds "{ servers.a = { repo = tensorrt 1; gpus = [ 0 ]; shareGpus = true; memory = 70000; }; servers.b = { repo = tensorrt 1; gpus = [ 0 ]; shareGpus = true; memory = 70000; $ports }; }" &&
    fails "{ servers.a = { repo = tensorrt 1; gpus = [ 0 ]; shareGpus = true; memory = 70000; }; servers.b = { repo = tensorrt 1; gpus = [ 0 ]; shareGpus = true; $ports }; }" \
      'GPU 0 has 143771 MiB, but a takes 70000 and b takes 131072' &&
    fails '{ servers.a = { repo = tensorrt 1; gpus = [ 0 ]; memory = 150000; }; }' 'memory is 150000 MiB, but a h200 has 143771'
}

test_real_lib_module_driver_is_new_enough() {
  need_lib || return
  local server='servers.a = { repo = tensorrt 1; gpus = [ 0 ]; };'
  holds "{ $server driverVersion = \"590.44.01\"; }" && holds "{ $server driverVersion = \"600.1\"; }" &&
    fails "{ $server driverVersion = \"580.95.05\"; }" 'needs driver 590.44.01 or later' 'this machine has 580.95.05'
}

test_real_lib_module_flags_are_the_servers() {
  need_lib || return
  module '{ servers.a = { engine = reference; flags = { log-format = "ISO8601"; http-thread-count = 4; }; }; }' 'served "a"' &&
    says '\"--triton-flag\" \"http-thread-count=4\" \"--triton-flag\" \"log-format=ISO8601\"' &&
    ! module '{ servers.a = { engine = reference; flags.http-thread-cuont = 4; }; }' 'served "a"' && says 'http-thread-count' &&
    ! module '{ servers.a = { engine = reference; flags.http-port = 4; }; }' 'served "a"' && says 'enginix writes it itself'
}

# The module makes the repository of an engine, by mkTritonRepo itself, which refuses what it does not know.
test_real_lib_module_takes_engines() {
  need_lib || return
  holds '{ servers.a = { engine = reference; settings = { maxBatchSize = 4; maxQueueSize = 9; }; }; }' &&
    module '{ servers.a = { engine = reference; settings.maxBatchSize = 4; }; }' 'served "a"' &&
    says '-tiny-qwen3-triton-repo\"' &&
    ! module '{ servers.a = { engine = engine "tensorrt"; gpus = [ 0 ]; settings.maxBatchSize = 17; }; }' 'served "a"' &&
    says "is above the engine's 16" &&
    ! module '{ servers.a = { engine = engine "tensorrt"; gpus = [ 0 ]; settings.parameters.kv_cache_free_memory_fraction = 0.5; }; }' 'served "a"' &&
    says 'unknown parameter' &&
    ! module '{ servers.a = { engine = reference; settings.maxBatchSise = 4; }; }' 'served "a"' && says 'unknown argument "maxBatchSise"' &&
    module '{ servers.a = { engine = reference; settings.ensembleInstances = 2; }; }' 'served "a"' &&
    ! module '{ servers.a = { engine = reference; settings.preprocessingInstances = 2; }; }' 'served "a"' &&
    says 'of kind reference: unknown argument "preprocessingInstances"' &&
    ! module '{ servers.a = { engine = engine "tensorrt"; gpus = [ 0 ]; settings.ensembleInstances = 2; }; }' 'served "a"' &&
    says 'of kind tensorrt: unknown argument "ensembleInstances"' &&
    ! module '{ servers.a = { engine = reference; settings.maxBatchSize = "four"; }; }' 'served "a"' && says 'is not of type' &&
    fails '{ servers.a = { repo = tiny; settings.maxBatchSize = 4; }; }' 'settings are for an engine' 'pass maxBatchSize to mkTritonRepo'
}

test_real_lib_module_own_servers() {
  need_lib || return
  local edge='engine = engine "edgellm"; gpus = [ 0 ];'
  holds "{ servers.a = { $edge apiKeyFile = \"/run/secrets/k\"; }; }" && module "{ servers.a = { $edge }; }" 'served "a"' &&
    says 'big-serve/bin/serve' && holds '{ servers.a = { engine = engine "llmapi"; ownServer = true; gpus = [ 0 ]; }; }' &&
    holds "{ servers.a = { $edge }; servers.b.repo = tiny; servers.b.httpPort = 9000; }" &&
    fails "{ servers.a = { $edge ownServer = false; }; }" 'has no Triton repository' &&
    fails '{ servers.a = { repo = tiny; ownServer = true; }; }' 'repo is served by Triton; set engine' &&
    fails '{ servers.a = { engine = reference; ownServer = true; }; }' 'kind reference has no server of its own' &&
    holds '{ servers.a = { engine = engine "rtx"; gpus = [ 0 ]; }; }' &&
    fails '{ servers.a.engine = engine "rtx"; }' 'gpus names 0' 'name one GPU a rank' &&
    fails '{ servers.a = { repo = tiny; apiKeyFile = "/run/k"; }; }' 'Triton asks for no key' &&
    fails "{ servers.a = { $edge apiKeyFile = \"/nix/store/x-key\"; }; }" 'in the store, where everybody reads it' &&
    fails "{ servers.a = { $edge host = \"0.0.0.0\"; }; }" 'there is no key; set apiKeyFile'
}

test_real_lib_module_gateway() {
  need_lib || return
  local on='gateway.enable = true; servers.a.repo = tiny;'
  holds "{ $on }" && module "{ $on }" services && says '"enginix-gateway"' &&
    fails '{ gateway.enable = true; servers.a = { repo = tensorrt 1; gpus = [ 0 ]; }; }' 'a is served by Triton' 'set ownServer' &&
    holds '{ gateway.enable = true; servers.a = { engine = engine "tensorrt"; ownServer = true; gpus = [ 0 ]; }; }' &&
    fails '{ gateway.enable = true; }' 'no servers are enabled' &&
    fails "{ $on gateway.models.m = [ \"a\" \"z\" ]; }" 'models: z is no server' &&
    fails "{ $on gateway.aliases.gpt = \"m\"; }" 'unknown model m in clients or aliases; there are a' &&
    fails "{ $on gateway.host = \"0.0.0.0\"; }" 'there is no key; set keyFile or clients' &&
    fails "{ $on gateway.openFirewall = true; }" 'which is unreachable from outside' &&
    fails "{ $on gateway.keyFile = \"/nix/store/x\"; }" 'in the store, where everybody reads it' &&
    fails "{ $on gateway.port = 8001; }" 'a.grpcPort and gateway.port are both 8001' &&
    module "{ $on gateway = { host = \"0.0.0.0\"; openFirewall = true; keyFile = \"/run/k\"; }; }" ports && says '[4000]'
}

test_real_lib_module_openai_of_a_server_names_what_replaces_it() {
  need_lib || return
  local set
  for set in 'enable = true;' 'enable = false;' 'port = 9000; flags.default-max-tokens = 64;'; do
    fails "{ servers.a = { engine = reference; openai = { $set }; }; }" \
      'services.enginix.servers.a.openai was removed' 'put services.enginix.gateway (mkGateway) before the server' || return 1
  done
  fails '{ servers.gateway.repo = tiny; }' 'the name is that of another unit'
}

# Before the machine switches: a changed server is tried, with what its trial needs.
test_real_lib_module_rollout() {
  need_lib || return
  module '{ servers.a.engine = reference; }' checks && says 'rollout a --incoming \"$1\"/etc/systemd/system' &&
    says '--engine /nix/store/' && ! grep -q -- --gpus "$out" &&
    module '{ servers.a = { repo = tensorrt 1; gpus = [ 0 ]; }; }' checks && says "--gpus 0 --needs 65536" && says 'check /nix/store' &&
    module '{ servers.a = { repo = tiny // { device = "cuda"; }; gpus = [ 0 ]; }; }' checks && ! grep -q -- --needs "$out" &&
    module '{ servers.a = { engine = reference; rollout = { memory = 77; }; }; }' checks && says '--needs 77' &&
    module '{ servers.a = { engine = reference; rollout.trial = false; }; }' checks && ! grep -q rollout "$out"
}

test_real_lib_module_names_and_runtimes() {
  need_lib || return
  fails '{ servers."Big model".repo = tiny; }' "part of a unit's and a user's name" &&
    fails '{ servers.a = { repo = tensorrt 1 // { runtime = "trtllm-9"; engine = (tensorrt 1).engine // { runtimePackage = { }; }; }; gpus = [ 0 ]; }; }' 'the runtime trtllm-9, which is unknown' &&
    fails '{ servers.a = { repo = { type = "derivation"; outPath = "/x"; name = "x"; kind = "tensorrt"; runtime = "trtllm-1.2.1"; }; gpus = [ 0 ]; }; }' 'which this one does not name'
}

test_real_lib_module_unknown_options_are_refused() {
  need_lib || return
  ! module '{ servers.a = { repo = tiny; htpPort = 1; }; }' failing && says 'htpPort' && says 'does not exist' &&
    fails '{ servers.a = { }; }' 'neither engine nor repo is set' &&
    fails '{ servers.a = { repo = tiny; engine = reference; }; }' 'engine and repo are both set'
}

test_real_lib_module_monitoring() {
  need_lib || return
  module '{ prometheus.enable = true; servers.a = { repo = tiny; host = "::1"; metricsPort = 9002; }; }' scraped &&
    says '"labels":{"server":"a"},"targets":["[::1]:9002"]' &&
    module '{ prometheus.enable = true; servers.a.repo = tiny; }' warnings && says '[]' &&
    module '{ grafana.enable = true; servers.a.repo = tiny; }' dashboards && says '["enginix"]' &&
    quietly python3 -m json.tool nix/nixos/dashboard/enginix.json
}

test_real_lib_module_gpu_builder() {
  need_lib || return
  local on='{ gpuBuilder = { enable = true; sms = [ 90 ]; }; }'
  holds "$on" && module "$on" features && says '"kvm","cuda","cuda-sm90"' && module "$on" mounts && says '"nvidia-gpu":{"enable":true}' &&
    fails '{ gpuBuilder.enable = true; }' 'sms is empty' && module '{ }' features && says '["kvm"]'
}
