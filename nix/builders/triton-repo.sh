# shellcheck shell=bash disable=SC2154
eval "flags=($flags)"
enginix triton-repo "$engine" -o "$out" "${flags[@]}"
