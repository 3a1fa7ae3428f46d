# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# The flake and the module over a package set that answers as nixpkgs does (tests/nixpkgs): its checks of licences and platforms,
# its attributes, NixOS' own option types. need_lib is that of real_lib.sh.

# The set in a directory of its own; over nixpkgs' own lib where it is at hand.
make_nixpkgs() {
  [ ! -e "$tmp/nixpkgs" ] || return 0
  cp -r tests/nixpkgs "$tmp/nixpkgs" && cp tests/hostpkgs/lib.nix "$tmp/nixpkgs/hostpkgs-lib.nix" || return 1
  [ ! -e "${NIXPKGS_LIB:-}/default.nix" ] || cp -rL "$NIXPKGS_LIB" "$tmp/nixpkgs/nixpkgs-lib"
}

# nix with that set in nixpkgs' place.
like_nixpkgs() { # arguments of nix
  make_nixpkgs || return 1
  (
    source tests/hostpkgs/nix-config.sh
    # Nothing may be built to evaluate.
    NIX_CONFIG+=$'\nallow-import-from-derivation = false'
    if [ "$1" = flake ]; then
      nix "$1" "$2" --override-input nixpkgs "path:$tmp/nixpkgs" --no-write-lock-file "${@:3}"
    else
      nix "$1" --override-input nixpkgs "path:$tmp/nixpkgs" --no-write-lock-file "${@:2}"
    fi
  )
}

# An expression over tests/nix/nixpkgs.nix.
over_nixpkgs() { # expression over its attributes and `lib`, arguments of nix eval
  quietly like_nixpkgs eval --impure --expr "with import $root/tests/nix/nixpkgs.nix { nixpkgsRoot = $tmp/nixpkgs; ${over_arguments-} }; $1" "${@:2}"
}

test_nixpkgs_flake_check() {
  quietly like_nixpkgs flake check --no-build && ! grep -a '^trace: ' "$out"
}

# Every package, app, check and shell of both systems, with what nixpkgs' reviewers ask of a package.
test_nixpkgs_every_output() {
  over_nixpkgs '
    let
      systems = [ "x86_64-linux" "aarch64-linux" ];
      outputs = [ "packages" "checks" "devShells" ];
      lacks = drv: builtins.filter (n: !(drv.meta ? ${n})) [ "description" "platforms" ];
      poor = system: lib.filterAttrs (_: l: l != [ ]) (builtins.mapAttrs (_: lacks) flake.packages.${system});
      forced = builtins.map (output: builtins.map (system: builtins.attrValues (builtins.mapAttrs (_: d: builtins.stringLength d.drvPath) flake.${output}.${system})) systems) outputs;
      apps = builtins.map (system: builtins.attrValues (builtins.mapAttrs (_: a: builtins.stringLength a.program) flake.apps.${system})) systems;
    in builtins.deepSeq [ forced apps ] {
      poor = builtins.map poor systems;
      packages = builtins.length (builtins.attrNames flake.packages.x86_64-linux);
      arm = builtins.map (n: flake.packages.aarch64-linux ? ${n}) [ "enginix-core" "default" "tiny-qwen3-checkpoint" "tiny-qwen3-triton-server" ];
    }' --json && says '"poor":[{},{}]' && says '"arm":[true,true,true,false]'
}

# What a host's configuration gives, `h` being a function of the settings of services.enginix.
on_nixos() { # expression, arguments of nix eval
  over_nixpkgs "let h = host; tiny = flake.packages.x86_64-linux.tiny-qwen3-engine; in $1" "${@:2}"
}

# NixOS puts PATH into every service; the units of an image have the image's own.
test_nixpkgs_module_sets_no_path_against_nixos() {
  need_lib || return
  local kind
  for kind in 'engine = engine "tensorrt";' 'engine = engine "tensorrt"; ownServer = true;' \
    'engine = engine "llmapi"; ownServer = true;'; do
    on_nixos "(h { servers.a = { $kind gpus = [ 0 ]; }; }).units.enginix-a" --raw && says 'Environment="PATH=/opt/venv-tritonserver/bin' || return 1
    [ "$(grep -c '^Environment="PATH=' "$out")" = 1 ] || return 1
  done
  # Those of this machine's own tools have NixOS' path, unless the user says otherwise.
  on_nixos '(h { servers.a.engine = tiny; }).units.enginix-a' --raw && says '-coreutils/bin:' &&
    on_nixos '(h { servers.a = { engine = tiny; environment.PATH = "/mine"; }; }).units.enginix-a' --raw && says 'Environment="PATH=/mine"'
}

test_nixpkgs_module_environment_is_taken_as_written() {
  need_lib || return
  on_nixos '(h { servers.a = { engine = tiny; environment.RATIO = "50%h \"x\""; }; }).units.enginix-a' --raw &&
    says 'Environment="RATIO=50%%h \"x\""' && says 'Environment="HOME=%C/enginix-a"'
}

# Two of a host's modules may both import it, by any of its names; each message and option says where it stands.
test_nixpkgs_module_can_be_imported_twice() {
  need_lib || return
  local twice='(evaluate [
      { imports = [ flake.nixosModules.default ]; }
      { imports = [ flake.nixosModules.enginix ]; services.enginix = { enable = true; servers.a.engine = flake.packages.x86_64-linux.tiny-qwen3-engine; }; }
    ])'
  over_nixpkgs "$twice.failing" --json && says '[]' &&
    over_nixpkgs "$twice.evaluated.options.services.enginix.enable.declarations" --json && says 'nix/nixos/options.nix' &&
    ! over_nixpkgs '(evaluate [ flake.nixosModules.default { _file = "host.nix"; options.services.enginix.driverVersion = lib.mkOption { type = lib.types.int; }; } ]).config.services.enginix.driverVersion' &&
    says "nix/nixos/options.nix" && says host.nix || return 1
  ! grep -q 'unknown-file' "$out" || return 1
  # A module that is disabled declares nothing.
  local disabled
  for disabled in flake.nixosModules.default "$root/nix/nixos"; do
    over_nixpkgs "(evaluate [ flake.nixosModules.default { disabledModules = [ $disabled ]; } ]).config ? services.enginix" && says false || return 1
  done
}

# The host's pkgs make repositories, servers and gateways: its configuration, its overlays, its packages.
test_nixpkgs_module_uses_the_hosts_packages() {
  need_lib || return
  over_arguments='overlays = [ (final: previous: { bash = previous.bash.overrideAttrs (_: { name = "hosts-bash"; }); }) ];' \
    over_nixpkgs '
      let
        ofHost = (evaluate [
          flake.nixosModules.default
          { services.enginix = { enable = true; servers.a.engine = flake.packages.x86_64-linux.tiny-qwen3-engine; }; }
        ]).config.services.enginix;
        plain = import nixpkgsRoot { system = "x86_64-linux"; };
      in [
        (ofHost.package.bash.name == "hosts-bash")
        (ofHost.scope.pkgs.bash.name == "hosts-bash")
        ((flake.lib.mkLib plain).enginix.bash.name == "bash")
      ]' --json && says '[true,true,true]' || return 1
  # Another scope is an option.
  over_nixpkgs '(evaluate [
      flake.nixosModules.default
      { services.enginix = {
          enable = true;
          scope = (flake.lib.mkLib pkgs).override { enginix = pkgs.ruff; tritonserver = pkgs.jq; };
          servers.a.engine = flake.packages.x86_64-linux.tiny-qwen3-engine;
        }; }
    ]).units.enginix-a' --raw && says -ruff/bin/ruff && says -- '-jq"'
}

# A host that allows nothing is told by nixpkgs what it has to allow; docs/how-to/nixos.md has the line.
test_nixpkgs_module_needs_one_package_allowed() {
  need_lib || return
  if over_arguments='config = { };' on_nixos '(h { servers.a.engine = tiny; }).units.enginix-a' --raw; then return 1; fi
  says tritonserver-cpu && says 'unfree license' || return 1
  # The set that enginix is locked to has allowed it.
  over_arguments='config = { };' on_nixos '(h { scope = flake.legacyPackages.x86_64-linux; servers.a.engine = tiny; }).units.enginix-a' --raw &&
    says 'Type=notify' && grep -q 'getName package == "tritonserver-cpu"' docs/how-to/nixos.md
}

# NixOS refuses them as names of units before it reads an assertion, where another unit names them.
test_nixpkgs_module_refuses_names_before_nixos_does() {
  need_lib || return
  local name
  for name in 'big model' 'a.b' 'Big' 'a/b' 'a@b' 'x é'; do
    on_nixos "(h { gateway.enable = true; servers = { a.engine = tiny; \"$name\" = { engine = tiny; httpPort = 1; grpcPort = 2; metricsPort = 3; }; }; }).failing" --json &&
      says "part of a unit's and a user's name" || return 1
    on_nixos "builtins.attrNames (h { gateway.enable = true; servers = { a.engine = tiny; \"$name\" = { engine = tiny; }; }; }).units" --json &&
      says '["enginix-a","enginix-gateway"]' || return 1
  done
}

# Triton and trtllm-serve ask for no key.
test_nixpkgs_module_refuses_an_open_address_without_a_key() {
  need_lib || return
  local open='host = "0.0.0.0"; openFirewall = true;'
  on_nixos "(h { servers.a = { engine = tiny; $open }; }).failing" --json && says 'host is 0.0.0.0' && says 'Triton asks for no key' &&
    on_nixos "(h { servers.a = { engine = engine \"llmapi\"; ownServer = true; gpus = [ 0 ]; $open }; }).failing" --json && says 'trtllm-serve asks for no key' &&
    on_nixos "(h { servers.a = { engine = tiny; $open openWithoutKey = true; }; }).failing" --json && says '[]' &&
    on_nixos "(h { servers.a = { engine = tiny; $open openWithoutKey = true; }; }).warnings" --json && says 'servers.a: everybody who reaches 0.0.0.0' &&
    on_nixos "(h { servers.a = { engine = tiny; openWithoutKey = true; }; }).warnings" --json && says '[]' &&
    on_nixos "(h { servers.a = { engine = engine \"edgellm\"; gpus = [ 0 ]; apiKeyFile = \"/run/k\"; $open }; }).failing" --json && says '[]'
}

test_nixpkgs_module_says_what_prometheus_does_not_scrape() {
  need_lib || return
  local on='prometheus.enable = true; servers.own = { engine = engine "llmapi"; ownServer = true; gpus = [ 0 ]; httpPort = 9000; };'
  on_nixos "(h { $on }).warnings" --json && says 'own not scraped' &&
    on_nixos "(h { $on }).config.services.prometheus.scrapeConfigs" --json && says '[]' &&
    on_nixos "(h { $on servers.a.engine = tiny; }).config.services.prometheus.scrapeConfigs" --json && says '127.0.0.1:8002' && ! grep -q 9000 "$out"
}

test_nixpkgs_module_scrapes_trtllm_serve_where_it_has_metrics() {
  need_lib || return
  local on='prometheus.enable = true; servers.own = { engine = engine "llmapi" // { request.llmArgs.return_perf_metrics = true; }; ownServer = true; gpus = [ 0 ]; httpPort = 9000; };'
  on_nixos "(h { $on }).warnings" --json && says '[]' &&
    on_nixos "(h { $on }).config.services.prometheus.scrapeConfigs" --json && says '"job_name":"enginix-trtllm-serve"' &&
    says '"metrics_path":"/prometheus/metrics"' && says '127.0.0.1:9000' && says '"server":"own"'
}

test_nixpkgs_module_scrapes_the_gateway() {
  need_lib || return
  local on='prometheus.enable = true; servers.a.engine = tiny; gateway.enable = true;' key='gateway.keyFile = "/run/k";'
  on_nixos "(h { $on }).config.services.prometheus.scrapeConfigs" --json && says '"job_name":"enginix-gateway"' && says '127.0.0.1:4000' &&
    says '"authorization":null' &&
    on_nixos "(h { $on $key }).warnings" --json && says 'set gateway.metricsKeyFile' &&
    on_nixos "(h { $on $key }).config.services.prometheus.scrapeConfigs" --json && ! grep -q 4000 "$out" &&
    on_nixos "(h { $on $key gateway.metricsKeyFile = \"/run/m\"; }).config.services.prometheus" --json &&
    says '"credentials_file":"/run/m"' && says '"checkConfig":"syntax-only"' &&
    on_nixos "(h { $on $key gateway.metricsKeyFile = \"/run/m\"; }).units.enginix-gateway" --raw && says 'LoadCredential=metrics:/run/m' &&
    on_nixos "(h { $on gateway.metricsKeyFile = \"/run/m\"; }).failing" --json && says 'no key lets requests in' &&
    on_nixos "(h { $on $key gateway.metricsKeyFile = \"/nix/store/x\"; }).failing" --json && says 'is in the store'
}

# The text of a check in each form that nixpkgs has had, with a stand-in for the command: which parts fail, and what the switch does.
test_nixpkgs_module_pre_switch_checks_refuse_the_switch() {
  need_lib || return
  local form parts action fails expected status
  mkdir -p "$tmp/preswitch/bin"
  # $FAILING names the sub-commands that fail.
  printf '#!/bin/bash\necho "$1" >>"$CALLS"\n[[ " $FAILING " != *" $1 "* ]]\n' >"$tmp/preswitch/bin/enginix"
  chmod +x "$tmp/preswitch/bin/enginix"
  for parts in 'serve rollout: engine = tiny;' 'check rollout: engine = engine "tensorrt"; gpus = [ 0 ];' \
    'check: engine = engine "llmapi"; ownServer = true; gpus = [ 0 ]; rollout.trial = false;' 'check rollout: engine = engine "edgellm"; gpus = [ 0 ];'; do
    for form in plain condition errexit; do
      on_nixos "(h { servers.a = { ${parts#*:} package = { type = \"derivation\"; name = \"enginix\"; outPath = \"$tmp/preswitch\"; meta.mainProgram = \"enginix\"; }; }; }).preSwitch.$form" --raw || return 1
      { [ $form = plain ] || echo 'set -o errexit -o nounset -o pipefail'; grep -v -e '^warning' -e '^trace' "$out"; } >"$tmp/preswitch/$form.sh"
      quietly shellcheck -s bash -e SC2181,SC2320 "$tmp/preswitch/$form.sh" || return 1
      for action in switch test boot dry-activate; do
        for fails in '' ${parts%%:*}; do
          : >"$tmp/calls"
          FAILING=$fails CALLS=$tmp/calls quietly bash "$tmp/preswitch/$form.sh" /nix/store/x-system "$action"
          status=$?
          expected=0
          [ -z "$fails" ] || expected=1
          # This machine's GPU and driver are no matter of a generation that starts later, or elsewhere.
          case $action in boot | dry-activate)
            [ "$fails" != check ] || expected=0
            ! grep -q check "$tmp/calls" || { echo "check ran for $action" && return 1; }
            ;;
          esac
          [ $status = $expected ] || { echo "$form, $action, failing: $fails: status $status, not $expected" && return 1; }
        done
      done
    done
  done
}

# What is made of a model bears its licence and page; what is run says its program.
test_nixpkgs_meta_of_stages() {
  over_nixpkgs 'let m = s: flake.packages.x86_64-linux."qwen3-0_6b-${s}".meta; stages = [ "model" "checkpoint" "engine" "triton-repo" "triton-server" ]; in
    map (s: [ (m s).license.spdxId (m s).homepage ] == [ "Apache-2.0" "https://huggingface.co/Qwen/Qwen3-0.6B" ]) stages ++ [ (m "triton-server").mainProgram flake.packages.x86_64-linux.enginix.meta.mainProgram ]' --json &&
    says '[true,true,true,true,true,"qwen3-0_6b-triton-server","enginix"]'
}

# Each function once, with tiny arguments, on both systems as far as the wheels are there; nothing is built.
test_nixpkgs_every_function() {
  over_nixpkgs '
    let
      of = system:
        let
          e = flake.legacyPackages.${system};
          model = e.catalogue.tiny-qwen3.model;
          inherit (e.catalogue.tiny-qwen3) checkpoint engine;
          isX86 = system == "x86_64-linux";
          tensorrt = e.mkEngine { kind = "tensorrt"; inherit model; target = "h200"; limits.maxSeqLen = 64; gates = { }; };
          llmapi = e.mkEngine { kind = "llmapi"; inherit model; gates = { }; };
          repo = e.mkTritonRepo { inherit engine; };
          server = e.mkTritonServer { inherit repo; };
          calibration = e.mkCalibration { tokenizer = model; };
          image = e.mkOciImage { inherit server; };
        in
        {
          inherit checkpoint tensorrt llmapi;
          dataset = e.mkHfDataset { lock = { version = 1; type = "dataset"; repo = "o/n"; revision = "0123456789012345678901234567890123456789"; files."a.jsonl" = { size = 1; sha256 = builtins.hashString "sha256" "a"; }; }; };
          runner = e.mkRunner { inherit model; };
          runtime = e.mkRuntime { id = "trtllm-1.2.1"; };
          serve = e.mkServe { engine = llmapi; };
          matrix = (e.mkEngineMatrix { inherit model; targets.here = { target = "h200"; }; gates = { }; limits.maxSeqLen = 64; }).here;
          gateway = e.mkGateway { servers.tiny = { url = "http://127.0.0.1:1"; kind = "triton"; model = "ensemble"; }; };
        }
        // lib.optionalAttrs isX86 {
          inherit server image repo calibration;
          answers = e.mkReferenceAnswers { inherit model; };
          comparison = e.mkComparison { engines = [ engine ]; };
          imageServer = e.mkTritonServer { repo = e.mkTritonRepo { engine = tensorrt; }; };
          quantized = e.mkQuantized { model = e.catalogue.qwen3-0_6b.model; format = "fp8"; inherit calibration; };
          edgellm = (e.mkEngine { kind = "edgellm"; model = e.catalogue.qwen3-0_6b.model; target = "rtx-5090"; gates = { }; limits = { maxInputLen = 128; maxKvCacheCapacity = 256; maxBatchSize = 1; }; }).export;
          converted = e.mkCheckpoint { converter = "modelopt"; model = e.mkHfModel { lock = { version = 1; repo = "o/n"; revision = "0123456789012345678901234567890123456789"; model.architecture = "GemmaForCausalLM"; files."a.safetensors" = { size = 1; sha256 = builtins.hashString "sha256" "a"; }; }; }; };
          kubernetes = e.mkKubernetes { inherit image; reference = "r.example/x@sha256:${builtins.hashString "sha256" "x"}"; };
        };
      drv = system: name: d: builtins.stringLength (builtins.addErrorContext "of ${name} on ${system}" d.drvPath) > 0;
    in builtins.map (system: lib.mapAttrsToList (drv system) (of system)) [ "x86_64-linux" "aarch64-linux" ]' --json
}

test_nixpkgs_license_that_spdx_does_not_know() {
  local model='(e: e.mkHfModel { lock = { version = 1; repo = "o/n"; revision = "0123456789012345678901234567890123456789"; license = "llama3.1"; model.architecture = "LlamaForCausalLM"; files."config.json" = { size = 1; sha256 = builtins.hashString "sha256" "a"; }; }; })'
  # It evaluates, is named, and what is made of it bears it.
  over_nixpkgs "let e = flake.legacyPackages.x86_64-linux; model = $model e; checkpoint = e.mkCheckpoint { inherit model; }; in
      builtins.seq checkpoint.drvPath (map (d: d.meta.license.shortName) [ model checkpoint ] ++ [ (model.meta.license ? free) ])" --json &&
    says '["llama3.1","llama3.1",false]' || return 1
  # Refused by nixpkgs' own configuration, by name.
  ! over_nixpkgs "let
      refusing = import nixpkgsRoot { system = \"x86_64-linux\"; config.blocklistedLicenses = [ (flake.lib.check.license.named \"llama3.1\") ]; };
    in ($model (flake.lib.mkLib refusing)).drvPath" && says 'has a blocklisted license' && says llama3.1
}

test_nixpkgs_override_knows_its_parts() {
  ! over_nixpkgs '((flake.lib.mkLib pkgs).override { tritonsrever = pkgs.bash; }).enginix-core.drvPath' && says 'unknown part "tritonsrever". Did you mean tritonserver?' &&
    ! over_nixpkgs '(((flake.lib.mkLib pkgs).override { crane = pkgs.jq; }).override { x = 1; }).crane' && says 'unknown part "x"' &&
    over_nixpkgs 'let s = (flake.lib.mkLib pkgs).override { crane = pkgs.jq; edgellm-runtime = pkgs.bash; }; in [ s.crane.name s.edgellm-runtime.name ]' --json && says '["jq","bash"]' || return 1
  # Every part that a file looks for under another name than its own stands in nix/default.nix.
  local part
  while read -r part; do
    grep -q "\"$part\"\|^    $part = " nix/default.nix || { echo "nix/default.nix lacks $part" && return 1; }
  done < <(grep -rhoE 'scope\.[a-z-]+ or' nix --include=*.nix | sed 's/scope\.\(.*\) or/\1/' | sort -u)
}

test_nixpkgs_flake_shows_without_warnings() {
  quietly like_nixpkgs flake show && ! grep -a 'trace: ' "$out" && says tiny-qwen3-engine && says nixosModules
}

# As `nix flake init` leaves it: no lock yet, then one.
test_nixpkgs_template_says_what_to_do() {
  local place=$tmp/template
  mkdir -p "$place" && cp -r templates/default/. "$place" || return 1
  # shellcheck disable=SC2317
  in_template() {
    like_nixpkgs eval --override-input enginix "path:$root" --override-input enginix/nixpkgs "path:$tmp/nixpkgs" "path:$place#packages.x86_64-linux.default.drvPath"
  }
  refuses in_template && says 'there is no lock' && says '#enginix-core -- lock' && says 'git add qwen3-0.6b.lock.json' &&
    cp nix/catalogue/qwen3-0_6b.lock.json "$place/qwen3-0.6b.lock.json" && quietly in_template && says -triton-server.drv &&
    over_nixpkgs 'flake.templates.default.welcomeText' --raw && says 'git add' || return 1
  # The README shows this file.
  python3 - README.md templates/default/flake.nix <<'PY'
import re, sys

def code(text: str) -> str:
    without = re.sub(r"#.*|description = .*?;", "", text)
    return re.sub(r"\s+", "", without)

readme = open(sys.argv[1], encoding="utf-8").read()
template = code(open(sys.argv[2], encoding="utf-8").read())
blocks = [code(b) for b in re.findall(r"```nix\n(.*?)```", readme, re.S)]
sys.exit(0 if template in blocks else "README.md shows another flake than templates/default/flake.nix")
PY
}

test_nixpkgs_overlay_gives_the_functions() {
  over_nixpkgs 'let final = pkgs // flake.overlays.default final pkgs; in [ (builtins.isFunction final.enginixLib.mkEngine) final.enginix.meta.mainProgram final.enginix.name ]' --json &&
    says '[true,"enginix","enginix-runtime-'
}

# The test in a virtual machine, which runs where nixpkgs is (.github/workflows): its configurations over NixOS' option types, its
# script as Python. Nothing of it runs here.
test_nixpkgs_vm_test_evaluates() {
  need_lib || return
  over_nixpkgs 'let t = flake.checks.x86_64-linux.nixos; in builtins.seq t.drvPath t.testScript' --raw || return 1
  grep -av -e '^warning' -e '^trace' "$out" >"$tmp/script.py"
  quietly python3 -m py_compile "$tmp/script.py" || return 1
  # Each of its generations has the server, and the broken one another repository.
  over_nixpkgs 'let m = flake.checks.x86_64-linux.nixos.nodes.machine; units = [ m.units ] ++ map (s: s.units) (builtins.attrValues m.specialisation);
    in { same = builtins.length (lib.unique (map (u: u.enginix-tiny) units)); gateway = map (u: u ? enginix-gateway) units; }' --json &&
    says '"gateway":[true,true,true]' && says '"same":3'
}

# The workflow is YAML, its scripts are clean, and the outputs that they name exist.
test_nixpkgs_workflow_runs_what_there_is() {
  local file=.github/workflows/nixpkgs.yml attribute
  mkdir -p "$tmp/workflow"
  "$(tests/hostpkgs/environments.sh dev)/bin/python" - "$file" "$tmp/workflow" <<'PY' || return 1
import sys, yaml
workflow = yaml.safe_load(open(sys.argv[1], encoding="utf-8"))
steps = [s for job in workflow["jobs"].values() for s in job["steps"]]
assert all("run" in s or "uses" in s for s in steps), steps
for number, step in enumerate(s for s in steps if "run" in s):
    # GitHub runs each with `bash -e`.
    with open(f"{sys.argv[2]}/step-{number}.sh", "w", encoding="utf-8") as script:
        script.write("#!/bin/bash\nset -e\n" + step["run"])
PY
  quietly shellcheck "$tmp/workflow"/*.sh || return 1
  while read -r attribute; do
    attribute=${attribute#.#}
    over_nixpkgs "flake.$attribute or flake.apps.x86_64-linux.$attribute or flake.packages.x86_64-linux.$attribute or (throw \"no $attribute\")" --apply 'x: true' || return 1
  done < <(grep -oE '\.#[A-Za-z0-9_.-]+' "$file" | sort -u)
}

# What mkEngine would say of an entry that is shown stands in the log of its build.
test_nixpkgs_warnings_of_entries_stand_in_the_log() {
  over_nixpkgs 'flake.legacyPackages.x86_64-linux.catalogue.qwen3-32b-nvfp4.engine.warnings' --json && says 'no FP8 or NVFP4 engine test of Qwen3' || return 1
  over_nixpkgs 'builtins.concatStringsSep "\n" flake.legacyPackages.x86_64-linux.catalogue.qwen3-32b-nvfp4.engine.warnings' --raw || return 1
  grep -av -e '^warning: ' -e '^trace' "$out" >"$tmp/warnings"
  # The builder with a stand-in for the command that it runs.
  (
    # shellcheck disable=SC2317
    enginix() { :; }
    warnings=$(cat "$tmp/warnings") model='' rootfs='' driver='' timing='' requestPath='' quietly source nix/builders/engine-tensorrt.sh
  ) &&
    says 'warning: NVIDIA skips its engine tests' && says 'warning: no FP8 or NVFP4 engine test of Qwen3' || return 1
  # A user's own engine says it at evaluation.
  over_nixpkgs 'let e = flake.legacyPackages.x86_64-linux; in (e.mkEngine { kind = "tensorrt"; model = e.catalogue.qwen3-32b-nvfp4.model; target = "rtx-pro-6000"; limits.maxSeqLen = 64; gates = { }; }).drvPath' &&
    says 'warning: qwen3-32b-nvfp4-engine-sm120: no FP8 or NVFP4 engine test of Qwen3'
}
