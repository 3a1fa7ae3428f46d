# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# Datasets of a hub on loopback: pinned by a lock, fetched, calibrated with.

dataset_hub() { # served directory
  rm -f "$tmp/dataset-port"
  python3 tests/hub/serve.py --repo "datasets/acme/texts=$1" --port-file "$tmp/dataset-port" >"$tmp/dataset-hub.out" 2>&1 &
  dataset_server=$!
  until [ -s "$tmp/dataset-port" ]; do sleep 0.05; done
  HF_ENDPOINT=http://127.0.0.1:$(<"$tmp/dataset-port")
  export HF_ENDPOINT
}

dataset_hub_ends() {
  kill "$dataset_server"
  wait "$dataset_server" 2>/dev/null
  unset HF_ENDPOINT
}

# New texts each time, so that nothing of them is in the store; large enough to be rows.
dataset_texts() { # directory
  mkdir -p "$1/data"
  printf -- '---\nlicense: cc0-1.0\n---\n' >"$1/README.md"
  python3 - "$1/data/train.jsonl" "$EPOCHREALTIME" <<'PY'
import json, sys
with open(sys.argv[1], "w") as f:
    for n in range(200):
        f.write(json.dumps({"text": "no", "said": f"Line {n} of a text that was written at {sys.argv[2]}. " * 3}) + "\n")
PY
}

dataset_lock() { # output, more words
  (cd python && quietly "$(../tests/hostpkgs/environments.sh core)/bin/python" -m enginix lock --dataset acme/texts -o "$@")
}

test_dataset_from_lock_to_calibration() {
  local result=0 revision path
  dataset_texts "$tmp/texts"
  dataset_hub "$tmp/texts"
  dataset_lock "$tmp/texts.lock.json" || result=1
  revision=$(grep -o '"revision": "[0-9a-f]*' "$tmp/texts.lock.json" | cut -d'"' -f4)
  with_lib build "let inherit (e.catalogue.tiny-qwen3) model; in e.mkCalibration {
    tokenizer = model; text = e.mkHfDataset { lock = $tmp/texts.lock.json; }; field = \"said\"; size = 4; sequenceLength = 64; }" --no-link --json -L || result=1
  path=$(grep -o '"out":"[^"]*' "$out" | tail -n1 | cut -d'"' -f4)
  quietly cat "$path/enginix.json" && says '"repo": "acme/texts"' && says "\"revision\": \"$revision\"" && says '"license": "cc0-1.0"' &&
    says '"field": "said"' || result=1
  # The dataset itself is no reference of the token ids.
  quietly "$nix" path-info -r "$path" && [ "$(wc -l <"$out")" = 1 ] || result=1
  dataset_hub_ends
  return $result
}

# What moved upstream is seen by --check; the pinned commit stays what it was, and other bytes under its name are refused.
test_dataset_that_changes_at_the_hub() {
  local result=0
  dataset_texts "$tmp/moving"
  dataset_hub "$tmp/moving"
  dataset_lock "$tmp/moving.lock.json" || result=1
  dataset_texts "$tmp/moving"
  (cd python && ! quietly "$(../tests/hostpkgs/environments.sh core)/bin/python" -m enginix lock --check "$tmp/moving.lock.json") &&
    says 'upstream moved' && says '~ data/train.jsonl' || result=1
  ! with_lib build "e.mkHfDataset { lock = $tmp/moving.lock.json; }" --no-link -L && says 'train.jsonl' && says 'pinned' || result=1
  dataset_hub_ends
  return $result
}

test_dataset_locks_and_model_locks_are_told_apart() {
  ! with_lib eval '(e.mkHfDataset { lock = root + "/tests/models/tiny-qwen3.lock.json"; }).drvPath' && says 'is the lock of a model; use mkHfModel' || return 1
  ! with_lib eval '(e.mkHfModel { lock = builtins.fromJSON (builtins.readFile (root + "/tests/models/tiny-qwen3.lock.json")) // { type = "dataset"; }; }).drvPath' &&
    says 'is the lock of a dataset; use mkHfDataset' || return 1
  ! with_lib eval '(e.mkHfDataset { lock = builtins.fromJSON (builtins.readFile (root + "/tests/models/tiny-qwen3.lock.json")) // { type = "space"; }; }).drvPath' &&
    says 'is neither "model" nor "dataset"' || return 1
  ! with_lib eval '(e.mkHfDataset { repo = "acme/texts"; }).drvPath' && says 'mkHfDataset' || return 1
  ! with_lib eval '(e.mkHfDataset { }).drvPath' && says 'enginix lock --dataset owner/name'
}

# Evaluation refuses every lock that the parser refuses (tests/python/hub/test_lock_corpus.py), as it is asked for.
test_locks_that_the_parser_refuses_are_refused() {
  "$(tests/hostpkgs/environments.sh core)/bin/python" tests/hub/lock_corpus.py >"$tmp/corpus.json" || return 1
  with_lib eval "
    let
      corpus = builtins.fromJSON (builtins.readFile $tmp/corpus.json);
      taken = case: (builtins.tryEval (if (case.lock.type or \"\") == \"dataset\" then e.mkHfDataset { inherit (case) lock; } else e.mkHfModel { inherit (case) lock; }).drvPath).success;
      wrong = builtins.filter (name: taken corpus.\${name} != (corpus.\${name}.takes == \"both\")) (builtins.attrNames corpus);
    in { inherit wrong; cases = builtins.length (builtins.attrNames corpus); }" --json || return 1
  says '"wrong":[]' || return 1
  "$(tests/hostpkgs/environments.sh core)/bin/python" tests/hub/lock_corpus.py null >"$tmp/corpus.json" &&
    ! with_lib eval "(e.mkHfModel { inherit ((builtins.fromJSON (builtins.readFile $tmp/corpus.json)).null) lock; }).drvPath" && says NUL
}
