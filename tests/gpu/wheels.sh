#!/usr/bin/env bash
# Puts what a GPU machine with Python 3.12, torch and numpy lacks for run.py into tests/gpu/wheels:
# NVIDIA ModelOpt and transformers in the versions that are tested here, by the hashes of wheels.txt.
# run.py unpacks them there; nothing is installed into that machine's Python.
#
#   tests/gpu/wheels.sh          # ModelOpt and transformers
#   tests/gpu/wheels.sh --vllm   # vLLM for vllm_questions.py and vllm_speed.py, into archives tests/gpu/parts
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
list=wheels into=wheels
[ "${1:-}" != --vllm ] || list=wheels_vllm into=wheels-vllm

platforms=(any manylinux1_x86_64 manylinux2010_x86_64 manylinux2014_x86_64)
for glibc in 5 12 17 24 26 27 28 31 34; do platforms+=("manylinux_2_${glibc}_x86_64"); done
rm -rf "${here:?}/$into"
"$python" -m pip download --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary=:all: \
  --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none \
  "${platforms[@]/#/--platform=}" --dest "$here/$into" --requirement "$here/$list.txt"
du -sh "$here/$into"
[ "$list" = wheels ] || "$python" "$here/pack_vllm.py" "$here/$into" "$here/parts"
