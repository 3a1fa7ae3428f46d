# shellcheck shell=bash disable=SC2154
eval "flags=($flags)"
enginix convert "$model" -o "$out" "${flags[@]}"
# A checkpoint that fails verification is not an output: a NaN of the model, for example, would get
# into the engine.
enginix verify-checkpoint "$out"
