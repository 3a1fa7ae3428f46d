# shellcheck shell=bash disable=SC1090,SC2154
source "$environment"
eval "flags=($flags)"
enginix reference "$model" -o "$out" "${flags[@]}"
