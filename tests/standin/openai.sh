#!/usr/bin/env bash
# Adds Triton's OpenAI frontend to the stand-in runtime's root file system: the stand-in main.py, the bindings' wheels,
# and names, without contents, of the packages that tensorrt_llm requires and the frontend imports.
#
#   tests/standin/openai.sh ROOTFS SITE_PACKAGES
set -euo pipefail
out=$1 site=$2
here=${3:-$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)}
triton=$out/opt/tritonserver/python
mkdir -p "$triton/openai"
cp -r --no-preserve=mode "$here/openai_frontend" "$triton/openai/openai_frontend"
/usr/bin/python3 -I "$here/wheels.py" "$triton"
for package in fastapi numpy openai partial_json_parser pydantic starlette transformers uvicorn; do
  mkdir "$out$site/$package-0.0.0.dist-info"
done
