#!/usr/bin/env bash
# Tests that need a real Nix: evaluation, fixed-output derivations, the sandbox, the whole pipeline.
#
#   tests/nix/run.sh [name ...]      all, or the named ones
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root" || exit 1
nix=$root/tests/hostpkgs/nix
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
out=$tmp/out
passed=0
failed=0
skipped=0

# Runs a command; its whole output is in $out afterwards.
quietly() { "$@" >"$out" 2>&1; }
# The output says so.
says() {
  grep -qF -- "$1" "$out" || {
    echo "    output lacks: $1"
    return 1
  }
}
refuses() { ! quietly "$@"; }
# An expression over the flake's functions, built or evaluated.
with_lib() { # nix verb, expression over `e` (the functions) and `root`
  quietly "$nix" "$1" --impure --expr "
    let
      nixpkgs = import $root/tests/hostpkgs { system = builtins.currentSystem; };
      e = import $root/nix { pkgs = nixpkgs; };
      root = $root;
      # What was built before is built again.
      fresh = attrs: attrs // { salt = \"$EPOCHREALTIME\"; };
    in $2" "${@:3}"
}

# Ends a test that this machine cannot run, with the reason.
skip() {
  echo "$*" >"$out"
  return 77
}

# Guards a test that takes minutes.
slow() {
  [ -n "${ENGINIX_SLOW-}" ] || skip 'slow: ENGINIX_SLOW=1 runs it'
}

# shellcheck source=/dev/null
for file in "$root"/tests/nix/cases/*.sh; do source "$file"; done

mapfile -t all < <(declare -F | sed -n 's/^declare -f test_//p' | sort)
[ $# -eq 0 ] || all=("$@")
for name in "${all[@]}"; do
  begun=$SECONDS
  "test_$name"
  case $? in
  0)
    passed=$((passed + 1))
    printf 'ok    %s (%s s)\n' "$name" $((SECONDS - begun))
    ;;
  77)
    skipped=$((skipped + 1))
    printf 'skip  %s: %s\n' "$name" "$(cat "$out")"
    ;;
  *)
    failed=$((failed + 1))
    printf 'FAIL  %s\n' "$name"
    tail -n 25 "$out" 2>/dev/null | sed 's/^/    /'
    ;;
  esac
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
