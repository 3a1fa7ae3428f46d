# shellcheck shell=bash disable=SC2154
cat >&2 <<EOF
error: runtime $id: no hash is recorded for $reference ($system)
  fix: on a machine that reaches the registry:
         enginix runtime pin $id --image $tag --system $system -o runtime.json
       and pass it:  mkRuntime { id = "$id"; pin = ./runtime.json; }, as the argument runtime of mkEngine
  To see the whole pipeline on any machine:
       nix build .#tiny-qwen3-engine
       nix run .#tiny-qwen3-triton-server
EOF
exit 1
