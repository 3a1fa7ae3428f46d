#!/usr/bin/env bash
# Puts what a GPU machine with Python 3.12, torch and numpy lacks for run.py into tests/gpu/wheels:
# NVIDIA ModelOpt and transformers in the versions that are tested here, by the hashes of wheels.txt.
# run.py unpacks them there; nothing is installed into that machine's Python.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}

rm -rf "$here/wheels"
"$python" -m pip download --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary=:all: \
  --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
  --platform manylinux2014_x86_64 --platform any --dest "$here/wheels" --requirement "$here/wheels.txt"
du -sh "$here/wheels"
