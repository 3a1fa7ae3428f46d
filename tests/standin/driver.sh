#!/usr/bin/env bash
# Makes the stand-in driver: an nvidia-smi that answers with one GPU, or several, and how the runtime misbehaves.
#
#   tests/standin/driver.sh DIRECTORY NAME COMPUTE_CAPABILITY TOTAL_MIB FREE_MIB DRIVER_VERSION [COUNT] [MISBEHAVE]
set -euo pipefail
out=$1 name=$2 capability=$3 total=$4 free=$5 version=$6 count=${7:-1} misbehave=${8:-}
mkdir -p "$out/bin" "$out/lib"
echo 'stand-in' >"$out/lib/libcuda.so.1"
[ -z "$misbehave" ] || echo "$misbehave" >"$out/misbehave"
cat >"$out/bin/nvidia-smi" <<EOF
#!/bin/sh
# Stand-in.
case "\$1" in
--query-gpu=*)
  i=0
  while [ \$i -lt $count ]; do
    echo "\$i, $name, GPU-standin-\$i, $capability, $total, $free, $version"
    i=\$((i + 1))
  done ;;
--query-compute-apps=*) ;;
*) exit 2 ;;
esac
EOF
chmod +x "$out/bin/nvidia-smi"
