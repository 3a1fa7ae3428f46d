# shellcheck shell=bash disable=SC2154
eval "flags=($flags)"
enginix answers --engine "$engine" --asked "$asked" --rootfs "${rootfs-}" \
  --driver "${driver-}" --out "$out" "${flags[@]}"
