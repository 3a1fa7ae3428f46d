# shellcheck shell=bash disable=SC2154
eval "flags=($flags)"
enginix edgellm-export "$model" -o "$out" --name "$exportName" "${flags[@]}"
