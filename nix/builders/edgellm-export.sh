# shellcheck shell=bash disable=SC2154
export OMP_WAIT_POLICY=PASSIVE # as nix/environment.nix
eval "flags=($flags)"
enginix edgellm-export "$model" -o "$out" --name "$exportName" "${flags[@]}"
