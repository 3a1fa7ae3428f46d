# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# Models from a hub on loopback that the test changes under way.

start_hub() { # log, served directory
  rm -f "$tmp/port"
  python3 tests/hub/serve.py --repo "acme/sharded=$2" --port-file "$tmp/port" --log "$1" >"$tmp/hub.out" 2>&1 &
  hub=$!
  until [ -s "$tmp/port" ]; do sleep 0.05; done
  HF_ENDPOINT=http://127.0.0.1:$(<"$tmp/port")
  export HF_ENDPOINT
}

stop_hub() {
  kill "$hub"
  wait "$hub" 2>/dev/null
  unset HF_ENDPOINT
}

lock() { # output
  (cd python && quietly "$(../tests/hostpkgs/environments.sh core)/bin/python" -m enginix lock acme/sharded -o "$1")
}

# A model of three shards with random weights, so that nothing of it is in the store already.
sharded_model() {
  mkdir -p "$1"
  cp tests/models/tiny-qwen3/{config.json,tokenizer.json} "$1"
  "$(tests/hostpkgs/environments.sh core)/bin/python" - "$1" <<'PY'
import json, os, sys
import numpy as np
from safetensors.numpy import save_file
where = sys.argv[1]
index = {}
for n in (1, 2, 3):
    file = f"model-{n:05}-of-00003.safetensors"
    save_file({f"t{n}": np.frombuffer(os.urandom(4 << 20), np.uint8)}, os.path.join(where, file))
    index[f"t{n}"] = file
json.dump({"metadata": {}, "weight_map": index}, open(os.path.join(where, "model.safetensors.index.json"), "w"))
PY
}

change_shard() { # directory, shard
  "$(tests/hostpkgs/environments.sh core)/bin/python" - "$1/model-0000$2-of-00003.safetensors" "t$2" <<'PY'
import os, sys
import numpy as np
from safetensors.numpy import save_file
save_file({sys.argv[2]: np.frombuffer(os.urandom(4 << 20), np.uint8)}, sys.argv[1])
PY
}

fetched_weights() { # request log: weight files of which bytes moved
  grep -o 'model-0000[123]-of-00003' "$1" | sort -u | tr '\n' ' '
}

test_model_again_moves_only_the_changed_shard() {
  local served=$tmp/served result=0
  sharded_model "$served"
  start_hub "$tmp/log1" "$served"
  lock "$tmp/one.lock.json" && : >"$tmp/log1" &&
    with_lib build "e.mkHfModel { lock = $tmp/one.lock.json; }" --no-link || result=1
  [ "$(fetched_weights "$tmp/log1")" = "model-00001-of-00003 model-00002-of-00003 model-00003-of-00003 " ] || result=1
  stop_hub
  change_shard "$served" 2
  start_hub "$tmp/log2" "$served"
  lock "$tmp/two.lock.json" && : >"$tmp/log2" &&
    with_lib build "e.mkHfModel { lock = $tmp/two.lock.json; }" --no-link || result=1
  fetched_weights "$tmp/log2" >"$tmp/moved"
  [ "$(cat "$tmp/moved")" = "model-00002-of-00003 " ] || {
    echo "    moved: $(cat "$tmp/moved")"
    result=1
  }
  stop_hub
  return $result
}

test_model_by_the_hash_of_its_whole_repository() {
  local served=$tmp/whole hash revision python result=0
  python=$(tests/hostpkgs/environments.sh core)/bin/python
  sharded_model "$served"
  start_hub "$tmp/log3" "$served"
  lock "$tmp/whole.lock.json" || result=1
  revision=$(grep -o '"revision": "[0-9a-f]*' "$tmp/whole.lock.json" | cut -d'"' -f4)
  (cd python && "$python" -m enginix fetch-tree acme/sharded "$revision" -o "$tmp/tree" >/dev/null 2>&1) || result=1
  hash=$("$nix" hash path "$tmp/tree")
  with_lib build "e.mkHfModel { repo = \"acme/sharded\"; revision = \"$revision\"; hash = \"$hash\"; }" --no-link || result=1
  # With another hash the same derivation is refused by Nix, naming both.
  ! with_lib build "e.mkHfModel { repo = \"acme/sharded\"; revision = \"$revision\"; hash = nixpkgs.lib.fakeHash; }" --no-link || result=1
  says "$hash" || result=1
  stop_hub
  return $result
}

test_model_as_a_hub_cache_loads_offline() {
  local cache
  cache=$(with_lib build 'e.catalogue.tiny-qwen3.model.hfCache' --no-link --json && grep -o '"out":"[^"]*' "$out" | cut -d'"' -f4)
  [ -n "$cache" ] || return 1
  # What AutoConfig reads a file with; itself it imports PyTorch, which takes seconds.
  HF_HUB_CACHE=$cache HF_HUB_OFFLINE=1 HOME=$tmp quietly "$(tests/hostpkgs/environments.sh runtime)/bin/python" -c '
import os
from transformers.utils.hub import cached_file
print(open(cached_file("enginix/tiny-qwen3", "config.json")).read())
if "ENGINIX_SLOW" in os.environ:
    from transformers import AutoConfig
    print(AutoConfig.from_pretrained("enginix/tiny-qwen3").architectures, "by AutoConfig")' &&
    says Qwen3ForCausalLM && { [ -z "${ENGINIX_SLOW-}" ] || says "['Qwen3ForCausalLM'] by AutoConfig"; }
}

test_model_that_needs_a_token_says_how_to_give_it() {
  local result=0
  python3 tests/hub/serve.py --repo acme/gated=tests/models/tiny-qwen3 --gated acme/gated=manual --token hf_secret --port-file "$tmp/gated-port" >/dev/null 2>&1 &
  hub=$!
  until [ -s "$tmp/gated-port" ]; do sleep 0.05; done
  HF_ENDPOINT=http://127.0.0.1:$(<"$tmp/gated-port")
  export HF_ENDPOINT
  local expression='
    let l = builtins.fromJSON (builtins.readFile (root + "/tests/models/tiny-qwen3.lock.json"));
        # A file that is in no store yet.
        f = l.files."config.json" // { sha256 = builtins.hashString "sha256" "'$EPOCHREALTIME'"; };
    in e.mkHfModel { lock = l // { repo = "acme/gated"; files = { "config.json" = f; }; }; }'
  ! with_lib build "$expression" --no-link || result=1
  says nix-daemon && says HF_TOKEN || result=1
  # With the token the file comes, and only its hash is wrong; the token is nowhere.
  export HF_TOKEN=hf_secret
  ! with_lib build "$expression" --no-link || result=1
  says sha256 || result=1
  ! grep -q hf_secret "$out" || result=1
  unset HF_TOKEN
  ! grep -rlq hf_secret /nix/store/*config.json.drv || result=1
  stop_hub
  return $result
}

# The facts of a lock are derived again from the configuration that it pins: by the command, and by a
# build of the model.
test_model_whose_lock_lies() {
  local lock=$root/tests/models/tiny-qwen3.lock.json lie
  local of="let lock = builtins.fromJSON (builtins.readFile $lock); in e.mkHfModel { inherit (e.catalogue.tiny-qwen3.model) hub; lock = lock // { model = lock.model //"
  with_lib build "$of { }; }; }" --out-link "$tmp/facts" || return 1
  grep -q '"files":{' "$tmp/facts/enginix.json" || return 1
  # What the manifest says of itself and of the files is what Python reads.
  (cd python && quietly "$(../tests/hostpkgs/environments.sh core)/bin/python" -c '
import sys
from pathlib import Path
from enginix.digests import digest_directory
from enginix.manifest import MANIFEST_FILE, read_manifest, require_whole_manifest
directory = Path(sys.argv[1])
require_whole_manifest(directory)
assert read_manifest(directory).files == digest_directory(directory, leave_out=(MANIFEST_FILE,))
' "$tmp/facts") || return 1
  for lie in 'layers = 400;' 'heads = -3;' 'quantization = "FP8";' 'vocabulary = "many";' 'architecture = "LlamaForCausalLM";'; do
    ! with_lib build "$of { $lie }; }; }" --no-link || return 1
    says 'the pinned configuration' || return 1
  done
}
