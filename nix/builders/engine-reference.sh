# shellcheck shell=bash disable=SC1090,SC2154
source "$environment"
eval "flags=($flags)"
enginix build "$checkpoint" --kind reference --model "$model" --name "$engineName" \
  --link-checkpoint -o "$out" "${flags[@]}"
