# shellcheck shell=bash disable=SC2154
# The runtime's own Python converts; of this machine it sees /nix/store, the GPU, and the directory
# for its output. Its launcher may set PYTHONPATH, so ours goes in by hand.
eval "flags=($flags)"
mkdir made
program='import sys
sys.path.insert(0, sys.argv.pop(1))
from enginix.cli import main
raise SystemExit(main())'
enginix runtime run "$runtime" --rootfs "$rootfs" ${driver:+--driver "$driver"} \
  --no-network --bind "$PWD/made" -- \
  python3 -c "$program" "$enginix/lib" convert "$model" -o "$PWD/made/checkpoint" "${flags[@]}"
mv made/checkpoint "$out"
