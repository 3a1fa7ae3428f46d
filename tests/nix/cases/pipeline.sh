# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# The whole chain over a real Triton server.

test_demo_answers() {
  quietly python3 demo/demo.py --nix "$nix" || return 1
  cp "$out" "$tmp/demo"
  local stage
  for stage in mkHfModel mkCheckpoint mkEngine mkTritonRepo mkTritonServer; do says "$stage" || return 1; done
  says 'tokens/s' && says 'server stopped cleanly'
}

test_demo_leaves_the_store_as_it_was() {
  local server
  server=$("$nix" build --no-link --json .#tiny-qwen3-triton-server 2>/dev/null | grep -o '"out":"[^"]*' | cut -d'"' -f4)
  [ -n "$server" ] || return 1
  # shellcheck disable=SC2046
  quietly "$nix" store verify --no-trust $("$nix" path-info -r "$server")
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
