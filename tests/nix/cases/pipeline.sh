# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# The whole chain over a real Triton server.

# Every file below store paths, with its size and time. Not the bytecode that pytest keeps of modules named test_*.py.
list_files() { # store path ...
  find "$@" ! -type d ! -name '*-pytest-*.pyc' -printf '%p %s %T@\n' | sort
}

# Builds, starts a server and stops it; as root it could write to a store without a daemon.
test_demo_answers_and_leaves_the_store_as_it_was() {
  local server stage paths
  server=$("$nix" build --no-link --json .#tiny-qwen3-triton-server 2>/dev/null | grep -o '"out":"[^"]*' | cut -d'"' -f4)
  [ -n "$server" ] || return 1
  mapfile -t paths < <(nix-store -qR "$server")
  list_files "${paths[@]}" >"$tmp/files-before"
  quietly python3 demo/demo.py --nix "$nix" || return 1
  for stage in mkHfModel mkCheckpoint mkEngine mkTritonRepo mkTritonServer; do says "$stage" || return 1; done
  says 'tokens/s' && says 'server stopped cleanly' && says "$server" || return 1
  list_files "${paths[@]}" >"$tmp/files-after"
  [ "$(wc -l <"$tmp/files-before")" -gt 1000 ] && quietly diff "$tmp/files-before" "$tmp/files-after"
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
