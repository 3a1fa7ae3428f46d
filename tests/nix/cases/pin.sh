# shellcheck shell=bash disable=SC2154
# `nix run .#pin`: the Hub is a server on loopback with small models under NVIDIA's names, the registry crane's
# stand-in (crane_standin of engines.sh). What is pinned evaluates to the engine that README names.

# A model that has an architecture and a number format by its configuration alone.
small_model() { # directory, architecture, quantization or nothing
  local type=${2%ForCausalLM}
  mkdir -p "$1" && cp tests/models/tiny-qwen3/* "$1" && sed -i "s/Qwen3ForCausalLM/$2/; s/\"qwen3\"/\"${type,,}\"/; s/\(\"max_position_embeddings\": \)[0-9]*/\140960/" "$1/config.json" &&
    { [ -z "$3" ] || echo "{\"quantization\": {\"quant_algo\": \"$3\"}}" >"$1/hf_quant_config.json"; }
}

test_pin_then_the_engine_evaluates() {
  local served=$tmp/served mine=$tmp/mine hub result=0 name
  crane_standin && mkdir -p "$mine" && small_model "$served/nvfp4" Qwen3ForCausalLM NVFP4 &&
    small_model "$served/fp8" Qwen3ForCausalLM FP8 && small_model "$served/llama" LlamaForCausalLM FP8 &&
    small_model "$served/phi" Phi3ForCausalLM NVFP4 && small_model "$served/plain" Qwen3ForCausalLM '' || return 1
  python3 tests/hub/serve.py --repo "nvidia/Qwen3-32B-NVFP4=$served/nvfp4" --repo "nvidia/Qwen3-32B-FP8=$served/fp8" \
    --repo "nvidia/Llama-3.1-8B-Instruct-FP8=$served/llama" --repo "nvidia/Phi-4-NVFP4=$served/phi" \
    --repo "acme/Small-1.5=$served/plain" --port-file "$tmp/pin-port" >"$tmp/pin-hub" 2>&1 &
  hub=$!
  until [ -s "$tmp/pin-port" ]; do sleep 0.05; done
  pin() { # arguments of pin
    HF_ENDPOINT=http://127.0.0.1:$(<"$tmp/pin-port") PATH=$tmp/crane/bin:$PATH quietly "${program[@]}" --directory "$mine" "$@"
  }
  # The derivations of engines, evaluated together.
  pinned_engines() { # name ...
    quietly like_nixpkgs eval --json --override-input enginix "path:$root" --override-input enginix/nixpkgs "path:$tmp/nixpkgs" \
      "path:$mine#packages.x86_64-linux" --apply "p: map (name: p.\${name + \"-engine\"}.drvPath) [ $(printf '"%s" ' "$@")]" &&
      [ "$(grep -o '[.]drv"' "$out" | wc -l)" = $# ]
  }
  # As a user types it; then the same program without evaluating the flake each time.
  local program=("$nix" run .#pin --)
  pin qwen3-32b-nvfp4 --revision main && says "nix build $mine#qwen3-32b-nvfp4-engine" || result=1
  program=("$("$nix" eval --raw .#apps.x86_64-linux.pin.program 2>/dev/null)")
  # The catalogue's commits are not this hub's: the branch is.
  for name in qwen3-32b-fp8 llama-3_1-8b-fp8 phi-4-nvfp4; do
    pin "$name" --revision main && says "nix build $mine#$name-engine" && [ -s "$mine/$name.lock.json" ] || result=1
  done
  [ -s "$mine/trtllm-1.2.1.pin.json" ] || result=1
  # Any other, of both kinds; its name has no dots.
  pin acme/Small-1.5 && says "nix build $mine#small-1_5-engine" || result=1
  # A name that is wrong costs nothing, and names the nearest.
  ! pin qwen3-32b-nvfp && says 'did you mean qwen3-32b-nvfp4?' || result=1
  ! pin acme/Small-1.5 --kind tensorrt && says 'needs a --target' || result=1
  pinned_engines qwen3-32b-nvfp4 qwen3-32b-fp8 llama-3_1-8b-fp8 phi-4-nvfp4 small-1_5 || result=1
  if [ $result = 0 ]; then
    rm -f "$mine/small-1_5.engine.json"
    pin acme/Small-1.5 --target "RTX 4090" --no-runtime && grep -q '"rtx-4090"' "$mine/small-1_5.engine.json" &&
      pinned_engines small-1_5 || result=1
  fi
  kill "$hub"
  wait "$hub" 2>/dev/null
  return $result
}

test_pin_is_what_an_unpinned_model_names() {
  ! with_lib build 'e.catalogue.phi-4-nvfp4.model' --no-link -L && says 'fix: nix run .#pin -- phi-4-nvfp4' &&
    with_lib eval 'e.catalogue.phi-4-nvfp4.model.meta.description' --raw && says 'run first: nix run .#pin -- phi-4-nvfp4' &&
    with_lib eval 'e.catalogue.qwen3-8b.engine.name + " " + e.catalogue.qwen3-8b.model.meta.description' --raw &&
    says 'run first: nix run .#pin -- qwen3-8b'
}
