# shellcheck shell=bash disable=SC2154
cat >&2 <<EOF
error: ${name}: this version of enginix does not build TensorRT engines yet
  It needs a ${gpu} (SM ${sm}) and NVIDIA's runtime ${runtime}.
  fix: see the whole pipeline with the reference kind, which runs on any machine:
       nix build .#tiny-qwen3-engine
       nix run .#tiny-qwen3-triton-server
EOF
exit 1
