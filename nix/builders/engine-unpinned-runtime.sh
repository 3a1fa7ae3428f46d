# shellcheck shell=bash disable=SC2154
pinned="mkRuntime { id = \"$id\"; pin = ./runtime.json; }"
word=$id
alternative=
if [ -n "${description-}" ]; then
  word=description.json
  pinned="mkRuntime { like = …; image = …; versions = …; pin = ./runtime.json; }"
  alternative="
       where description.json holds:  $description"
fi
if [ -n "$others" ]; then
  image="mkRuntime { id = \"$id\"; image = \"${others##* }\"; }"
  alternative="
       or take an image whose hash a public source gives, unverified: $image"
fi
cat >&2 <<EOF
error: runtime $id: no hash is recorded for $reference ($system)
  fix: on a machine that reaches the registry:
         enginix runtime pin $word --image $tag --system $system -o runtime.json
       and pass it:  $pinned, as the argument runtime of mkEngine$alternative
     or, with a model of the catalogue: nix run .#pin -- NAME
  To see the whole pipeline on any machine:
       nix build .#tiny-qwen3-engine
       nix run .#tiny-qwen3-triton-server
EOF
exit 1
