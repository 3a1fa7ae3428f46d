#!/usr/bin/env bash
# Puts what a machine with Python 3.12 and numpy lacks for rtx_rebuild.py into tests/gpu/wheels-rtx: TensorRT
# for RTX and ml_dtypes, by the hashes of wheels-rtx.txt. The library is cut into parts of 24 MiB, which
# rtx_rebuild.py joins; nothing is installed into that machine's Python.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}

rm -rf "$here/wheels-rtx"
"$python" -m pip download --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary=:all: \
  --python-version 3.12 --implementation cp --abi cp312 --abi none --platform manylinux_2_28_x86_64 \
  --platform manylinux_2_27_x86_64 --dest "$here/wheels-rtx" --requirement "$here/wheels-rtx.txt"
cd "$here/wheels-rtx"
for wheel in tensorrt_rtx_cu13_libs-*.whl; do
  split -b 24M "$wheel" "$wheel.part-"
  rm "$wheel"
done
ls -l "$here/wheels-rtx"
