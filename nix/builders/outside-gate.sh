# shellcheck shell=bash disable=SC1090,SC2154
source "$environment"
eval "flags=($flags)"
enginix gate "$engine" --said "$answers" --reference "$reference" --model "$model" \
  --gated-engine -o "$out" "${flags[@]}"
