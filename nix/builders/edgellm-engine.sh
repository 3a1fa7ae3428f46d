# shellcheck shell=bash disable=SC2154
eval "flags=($flags)"
enginix edgellm-build "$export" --model "$model" -o "$out" --name "$engineName" "${flags[@]}"
