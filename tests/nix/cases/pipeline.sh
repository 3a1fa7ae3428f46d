# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# The whole chain over a real Triton server.

# As `make demo` runs it; demo_as_an_app_… has the same server, demo_stages_of_a_flake the same stages.
test_demo_answers() {
  slow || return
  quietly python3 demo/demo.py --nix "$nix" || return 1
  local stage
  for stage in mkHfModel mkCheckpoint mkEngine mkTritonRepo mkTritonServer; do says "$stage" || return 1; done
  says 'tokens/s' && says 'server stopped cleanly'
}

test_demo_stages_of_a_flake() {
  quietly env PYTHONPATH=demo python3 -c '
import os, sys
import demo
stages = demo.FlakeStages(sys.argv[1], (sys.argv[2],))
for stage, *_ in demo.STAGES:
    path, built = demo.build(stages, stage, os.environ)
    print(stage, built, path, path.is_dir())' "$root" "$nix" || return 1
  local stage
  for stage in model checkpoint engine triton-repo triton-server; do
    grep -qE "^$stage [0-9]+ /nix/store/[a-z0-9]{32}-tiny-qwen3-$stage True$" "$out" || { echo "    no stage $stage" && return 1; }
  done
}

test_demo_option_rebuilds_only_what_follows_it() {
  quietly "$nix" build --no-link .#tiny-qwen3-engine || return 1
  with_lib build '
    e.mkTritonServer { repo = e.mkTritonRepo { engine = e.catalogue.tiny-qwen3.engine; maxBatchSize = 3; }; }' --no-link --dry-run || return 1
  says triton-repo.drv && says triton-server.drv && [ "$(grep -c '\.drv' "$out")" = 2 ]
}

test_two_runs_give_the_same_bytes() {
  local stages=(.#tiny-qwen3-checkpoint .#tiny-qwen3-triton-repo)
  quietly "$nix" build --no-link .#tiny-qwen3-triton-repo || return 1
  # With its gates it takes longest; tests/python/engine builds one twice each time.
  [ -z "${ENGINIX_SLOW-}" ] || stages+=(.#tiny-qwen3-engine)
  quietly "$nix" build --no-link "${stages[@]}" --rebuild
}

# A folder named triton in a build's directory was once imported in the library's place.
test_launcher_imports_nothing_from_the_callers_directory() {
  local enginix
  enginix=$("$nix" build --no-link --json .#enginix-core 2>/dev/null | grep -o '"out":"[^"]*' | cut -d'"' -f4)/bin/enginix
  mkdir -p "$tmp/caller/numpy" "$tmp/caller/safetensors"
  echo 'raise SystemExit("imported from the working directory")' | tee "$tmp/caller/numpy/__init__.py" >"$tmp/caller/safetensors/__init__.py"
  (cd "$tmp/caller" && quietly "$enginix" convert "$root/tests/models/tiny-qwen3" -o "$tmp/converted") &&
    [ -s "$tmp/converted/rank0.safetensors" ] && ! grep -q 'imported from' "$out"
}

# The commands of a page as they stand, on the tiny engine; its places of the machine are in the test's directory.
page_commands() { # page, pattern of its commands
  local commands
  commands=$(sed -n '/^```sh$/,/^```$/p' "docs/how-to/$1.md" | grep -E "^($2)" | sed "s,/etc/nix/,$tmp/pages/,; s,/srv/,$tmp/pages/,; s,\.#,$root#,")
  [ -n "$commands" ] && (cd "$tmp/pages" && quietly eval "set -e; ${commands//nix /$nix }")
}

test_pages_on_disk_logs_and_caches() {
  slow || return
  # A cache that is asked in vain takes seconds.
  local pages=$tmp/pages path ENGINIX_NIX_CONFIG='substituters ='
  export ENGINIX_NIX_CONFIG
  mkdir -p "$pages" && quietly "$nix" build -o "$pages/result" .#tiny-qwen3-engine && path=$(readlink -f "$pages/result") || return 1
  page_commands disk 'nix path-info|nix build -o model|nix-store --gc --print-roots' && says 'does not depend on' && says "$pages/result -> " || return 1
  page_commands logs-and-metrics 'nix ' && says 'gate weights: passed' || return 1
  # Its signature stays out of the machine's store.
  quietly "$nix" copy --no-check-sigs --to "$pages/store" "$path" || return 1
  NIX_REMOTE="local?root=$pages/store" page_commands binary-cache 'install|nix ' && says 'cache.example.org-1:' &&
    [ "$(stat -c %a "$pages/cache-key")" = 600 ] || return 1
  taken() { quietly "$nix" copy --from "file://$pages/cache" --to "$pages/empty" "$path" "$@"; }
  refuses taken && says 'lacks a valid signature' &&
    taken --option trusted-public-keys "$("$nix" key convert-secret-to-public <"$pages/cache-key")"
}
