# shellcheck shell=bash disable=SC2154
eval "flags=($flags)"
enginix convert "$model" -o "$out" "${flags[@]}"
# What verification finds fault with is no checkpoint: NaN of the model, for one, would be an
# engine's.
enginix verify-checkpoint "$out"
