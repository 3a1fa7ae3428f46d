# shellcheck shell=bash disable=SC1090,SC2154
source "$environment"
eval "flags=($flags)"
enginix rtx-build "$checkpoint" --model "$model" --name "$engineName" -o "$out" "${flags[@]}"
