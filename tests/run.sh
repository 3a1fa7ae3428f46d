#!/usr/bin/env bash
# Runs the Nix cases and pytest beside each other, which share no ports and no directories, on every core.
#
#   tests/run.sh PYTHON
#
# Each line of the output says which part it is of. At the end stand both summaries, pytest's last. Fails if a part does.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

run_part() { # name, command ...
  "${@:2}" 2>&1 | tee "$logs/$1" | sed -u "s/^/$(printf '%-7s' "$1")| /"
  return "${PIPESTATUS[0]}"
}

# Both parts compute with PyTorch: threads that wait sleep instead of taking the other part's core.
export OMP_WAIT_POLICY=PASSIVE
run_part nix env ENGINIX_NIX_JOBS=1 tests/nix/run.sh &
nix=$!
run_part python "$1" -m pytest -q -n "$(nproc)" --dist loadfile &
python=$!
wait $nix
nix_status=$?
wait $python
python_status=$?

echo
echo "== nix (status $nix_status)"
sed -n '/^FAIL  /p; $p' "$logs/nix" | awk '!seen[$0]++'
echo "== python (status $python_status)"
sed -n '/short test summary info/,$p' "$logs/python" | grep -v '^SKIPPED' | sed '$d'
tail -n 1 "$logs/python"
[ $nix_status -eq 0 ] && [ $python_status -eq 0 ]
