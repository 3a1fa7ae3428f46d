#!/usr/bin/env bash
# Tests that need a real Nix: evaluation, fixed-output derivations, the sandbox, the whole pipeline.
#
#   tests/nix/run.sh [name ...]      all, or the named ones; a name's beginning stands for all that have it
#
# The cases of a file run in their order, as they may share a directory; files run beside one another, as many as
# ENGINIX_NIX_JOBS says (default 2).
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root" || exit 1
nix=$root/tests/hostpkgs/nix
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
out=$tmp/out
# Looked for here in place of before each of some hundred commands.
# shellcheck source=tests/hostpkgs/nix-config.sh
ENGINIX_SANDBOX_PATHS=$(source tests/hostpkgs/nix-config.sh && echo "$ENGINIX_SANDBOX_PATHS") || exit 1
export ENGINIX_SANDBOX_PATHS

# Runs a command; its whole output is in $out afterwards, but for what Nix says of others that use its database.
quietly() {
  local status=0
  "$@" >"$out" 2>&1 || status=$?
  sed -i '/SQLite database .* is busy/d' "$out"
  return $status
}
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

# Milliseconds of processor time that processes of this shell have taken until now, in $used; a subshell has its own.
count_processor_time() {
  times >"$tmp/times"
  used=$(tail -n 1 "$tmp/times" | awk -F '[ms ]+' '{ printf "%d", ($1 * 60 + $2 + $3 * 60 + $4) * 1000 }')
}

# Runs one case and prints its line.
run_case() { # name
  local begun=$SECONDS status used before
  count_processor_time
  before=$used
  : >"$out"
  "test_$1" >"$tmp/said" 2>&1
  status=$?
  count_processor_time
  used=$((used - before))
  case $status in
  0) printf 'ok    %s (%s s, %s.%s of processor time)\n' "$1" $((SECONDS - begun)) $((used / 1000)) $((used % 1000 / 100)) ;;
  77) printf 'skip  %s: %s\n' "$1" "$(cat "$out")" ;;
  *)
    printf 'FAIL  %s (%s s)\n' "$1" $((SECONDS - begun))
    sed 's/^/    /' "$tmp/said"
    tail -n 25 "$out" 2>/dev/null | sed 's/^/    /'
    ;;
  esac
}

# Runs cases of one file, in a directory of their own.
run_file() { # file's name, case ...
  tmp=$tmp/$1
  out=$tmp/out
  mkdir -p "$tmp"
  local name
  for name in "${@:2}"; do
    # One write a case: lines of files that run beside one another do not mix.
    run_case "$name" >"$tmp/line"
    cat "$tmp/line"
    cat "$tmp/line" >>"$results"
  done
}

mapfile -t all < <(declare -F | sed -n 's/^declare -f test_//p' | sort)
if [ $# -gt 0 ]; then
  known=("${all[@]}")
  all=()
  for wanted in "$@"; do
    wanted=${wanted#test_}
    mapfile -t named < <(printf '%s\n' "${known[@]}" | grep -x -- "$wanted" || printf '%s\n' "${known[@]}" | grep "^$wanted")
    if [ ${#named[@]} -eq 0 ]; then
      echo "error: there is no test $wanted; beginnings are: $(printf '%s\n' "${known[@]}" | cut -d_ -f1 | sort -u | xargs)" >&2
      exit 2
    fi
    all+=("${named[@]}")
  done
fi
shopt -s extdebug
declare -A cases=()
for name in "${all[@]}"; do
  # With extdebug: function, line, file.
  file=$(basename "$(declare -F "test_$name" | cut -d' ' -f3-)" .sh)
  cases[${file:-none}]+=" $name"
done
shopt -u extdebug

results=$tmp/results
: >"$results"
# Files that take longest begin first.
for file in edgellm whole quantize checkpoints engines pipeline "${!cases[@]}"; do
  [ -n "${cases[$file]-}" ] || continue
  while [ "$(jobs -rp | wc -l)" -ge "${ENGINIX_NIX_JOBS:-2}" ]; do wait -n; done
  # shellcheck disable=SC2086
  run_file "$file" ${cases[$file]} &
  unset "cases[$file]"
done
wait
passed=$(grep -c '^ok    ' "$results")
failed=$(grep -c '^FAIL  ' "$results")
skipped=$(grep -c '^skip  ' "$results")
grep '^FAIL  ' "$results"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ] && [ $((passed + failed + skipped)) -eq ${#all[@]} ]
