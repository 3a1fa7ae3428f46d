# shellcheck shell=bash disable=SC2154
# The demo as the flake's app, over the stand-in package set.

# It has its stages' derivations: no second evaluation, which would need the caller's flags and package set.
test_demo_as_an_app() {
  quietly "$nix" run .#demo -- --max-tokens 4 && says 'server stopped cleanly' && says 'tokens/s' || return 1
  # What the files weigh: the checkpoint is linked into the engine, and a model is links alone.
  local name
  for name in mkHfModel mkCheckpoint mkEngine; do
    grep -E "^  $name .* MiB " "$out" || { echo "    $name weighs less than a MiB" && return 1; }
  done
}
