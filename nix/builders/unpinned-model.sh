# shellcheck shell=bash disable=SC2154
cat >&2 <<EOF
error: $repo: no commit is recorded for this model, so it cannot be fetched
  fix: pin it:                 enginix lock $repo -o model.lock.json
       and pass the lock:      mkHfModel { lock = ./model.lock.json; }
  Its engine needs a Blackwell GPU and NVIDIA's runtime, which this version of enginix does not build for yet.
  To see the whole pipeline on any machine:
       nix build .#tiny-qwen3-engine
       nix run .#tiny-qwen3-triton-server
EOF
exit 1
