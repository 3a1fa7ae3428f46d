# shellcheck shell=bash disable=SC1090,SC2154
source "$environment"
eval "flags=($flags)"
# The bytes do not depend on the number of threads; Nix writes 0 for all cores.
if [ "${NIX_BUILD_CORES:-0}" != 0 ]; then
  flags+=(--threads "$NIX_BUILD_CORES")
fi
enginix quantize "$model" -o "$out" --name "$modelName" "${flags[@]}"
