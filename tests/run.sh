#!/usr/bin/env bash
# Runs the Nix cases and pytest beside each other, which share no ports and no directories, on every core.
#
#   tests/run.sh PYTHON
#
# Each line of the output says which part it is of. At the end stand both summaries, pytest's last. Fails if a part does.
#
# Up to $most_again failed tests are run once more when nothing runs beside them: one that passes then is called
# unsteady, in the summary, and does not fail the run; one that fails twice does.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
most_again=5
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

run_part() { # name, command ...
  "${@:2}" 2>&1 | tee "$logs/$1" | sed -u "s/^/$(printf '%-7s' "$1")| /"
  return "${PIPESTATUS[0]}"
}

# Both parts compute with PyTorch: threads that wait sleep instead of taking the other part's core.
export OMP_WAIT_POLICY=PASSIVE
# pytest, run as root, would write its bytecode of plugins into the store, where it changes paths' hashes.
export PYTHONDONTWRITEBYTECODE=1
# Every program that a test starts would compile the package where the environment keeps no bytecode.
"$1" -m compileall -q python/enginix
run_part nix env ENGINIX_NIX_JOBS=1 tests/nix/run.sh &
nix=$!
# Slow tests wait for servers most of the time.
workers=$(nproc)
[ -z "${ENGINIX_SLOW-}" ] || workers=$((workers + 1))
run_part python "$1" -m pytest -q -n "$workers" --dist loadfile --no-loadscope-reorder -o cache_dir="$logs/cache" &
python=$!
wait $nix
nix_status=$?
wait $python
python_status=$?

# Runs the failed cases of the Nix part again, each with those of its file: they may share a directory.
run_nix_again() {
  local failed name file again=()
  mapfile -t failed < <(sed -n 's/^FAIL  \([a-z0-9_]*\).*/\1/p' "$logs/nix" | sort -u)
  [ ${#failed[@]} -gt 0 ] && [ ${#failed[@]} -le $most_again ] || return 1
  for name in "${failed[@]}"; do
    file=$(grep -l "^test_$name()" tests/nix/cases/*.sh) || return 1
    mapfile -t -O ${#again[@]} again < <(sed -n 's/^test_\([a-z0-9_]*\)().*/\1/p' "$file")
  done
  run_part nix-again tests/nix/run.sh "${again[@]}" &&
    printf 'unsteady: %s failed beside others and passed alone\n' "${failed[@]}" >>"$logs/unsteady"
}

# Runs the failed tests of pytest again.
run_python_again() { # python
  local failed
  failed=$("$1" -c 'import json, sys; print("\n".join(json.load(open(sys.argv[1]))))' "$logs/cache/v/cache/lastfailed") || return 1
  [ "$(wc -l <<<"$failed")" -le $most_again ] || return 1
  run_part python-again "$1" -m pytest -q --last-failed -o cache_dir="$logs/cache" &&
    printf '%s\n' "$failed" | sed 's/.*/unsteady: & failed beside others and passed alone/' >>"$logs/unsteady"
}

: >"$logs/unsteady"
if [ $nix_status -eq 1 ]; then run_nix_again && nix_status=0; fi
if [ $python_status -eq 1 ]; then run_python_again "$1" && python_status=0; fi

echo
cat "$logs/unsteady"
echo "== nix (status $nix_status)"
sed -n '/^FAIL  /p; $p' "$logs/nix" | awk '!seen[$0]++'
echo "== python (status $python_status)"
sed -n '/short test summary info/,$p' "$logs/python" | grep -v '^SKIPPED' | sed '$d'
tail -n 1 "$logs/python"
[ $nix_status -eq 0 ] && [ $python_status -eq 0 ]
