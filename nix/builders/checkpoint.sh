# shellcheck shell=bash disable=SC2154
eval "flags=($flags)"
enginix convert "$model" -o "$out" "${flags[@]}"
