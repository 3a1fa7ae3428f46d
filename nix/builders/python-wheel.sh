# shellcheck shell=bash disable=SC2154
# The order of sets is part of the bytecode; with a fixed seed the same wheel gives the same bytes.
PYTHONHASHSEED=0 python3 -I "$installer" "$src" "$out"
