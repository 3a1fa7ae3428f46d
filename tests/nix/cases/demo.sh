# shellcheck shell=bash disable=SC2154
# The demo as the flake's app, over the stand-in package set.

# It has its stages' derivations: no second evaluation, which would need the caller's flags and package set.
test_demo_as_an_app() {
  # What was built is not built again.
  quietly "$nix" build --no-link .#tiny-qwen3-triton-server || return 1
  quietly "$nix" run .#demo -- --max-tokens 4 && says 'server stopped cleanly' && says 'tokens/s' &&
    says 'in all          0 derivations built' || return 1
  # What the files weigh: the checkpoint is linked into the engine, and a model is links alone.
  local name
  for name in mkHfModel mkCheckpoint mkEngine; do
    grep -E "^  $name .* MiB " "$out" || { echo "    $name weighs less than a MiB" && return 1; }
  done
}
