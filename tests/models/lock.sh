#!/usr/bin/env bash
# Writes tiny-qwen3.lock.json again after the model changed, from the test hub.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=$("$here/../hostpkgs/environments.sh" core)/bin/python
tmp=$(mktemp -d)
"$python" "$here/../hub/serve.py" --repo "enginix/tiny-qwen3=$here/tiny-qwen3" --port-file "$tmp/port" >"$tmp/log" &
trap 'kill $!; rm -r "$tmp"' EXIT
until [ -s "$tmp/port" ]; do sleep 0.1; done
rm -f "$here/tiny-qwen3.lock.json"
cd "$here/../../python"
HF_ENDPOINT=http://127.0.0.1:$(<"$tmp/port") "$python" -m enginix lock enginix/tiny-qwen3 -o "$here/tiny-qwen3.lock.json"
