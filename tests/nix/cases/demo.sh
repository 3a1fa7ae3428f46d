# shellcheck shell=bash disable=SC2154
# The demo as the flake's app, over the stand-in package set.

# Every file below store paths, with its size and time. Not the bytecode that pytest keeps of modules named test_*.py.
list_files() { # store path ...
  find "$@" ! -type d ! -name '*-pytest-*.pyc' -printf '%p %s %T@\n' | sort
}

# It has its stages' derivations: no second evaluation, which would need the caller's flags and package set. As root it
# could write to a store without a daemon.
test_demo_as_an_app_answers_and_leaves_the_store_as_it_was() {
  local server paths name
  # What was built is not built again.
  server=$("$nix" build --no-link --json .#tiny-qwen3-triton-server 2>/dev/null | grep -o '"out":"[^"]*' | cut -d'"' -f4)
  [ -n "$server" ] || return 1
  mapfile -t paths < <(nix-store -qR "$server")
  list_files "${paths[@]}" >"$tmp/files-before"
  quietly "$nix" run .#demo -- --max-tokens 4 && says 'server stopped cleanly' && says 'tokens/s' &&
    says 'in all          0 derivations built' && says "$server" || return 1
  for name in mkHfModel mkCheckpoint mkEngine mkTritonRepo mkTritonServer; do says "$name" || return 1; done
  # What the files weigh: the checkpoint is linked into the engine, and a model is links alone.
  for name in mkHfModel mkCheckpoint mkEngine; do
    grep -E "^  $name .* MiB " "$out" || { echo "    $name weighs less than a MiB" && return 1; }
  done
  list_files "${paths[@]}" >"$tmp/files-after"
  [ "$(wc -l <"$tmp/files-before")" -gt 1000 ] && quietly diff "$tmp/files-before" "$tmp/files-after"
}
