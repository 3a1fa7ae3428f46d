# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# mkCheckpoint in real sandboxed builds: ranks, the other converters, what evaluation refuses.

built_checkpoint() { # expression over e; leaves the store path in $path
  with_lib build "$1" --no-link --json -L || return 1
  path=$(grep -o '"out":"[^"]*' "$out" | tail -n 1 | cut -d'"' -f4)
  [ -n "$path" ]
}
# A model that is only looked at by evaluation.
named() { echo "{ model.architecture = \"$1\"; quantization = null; modelName = \"x\"; outPath = \"/nix/store/x\"; }"; }
refused() { # arguments of mkCheckpoint, words
  ! with_lib eval "(e.mkCheckpoint { $1 }).drvPath" || return 1
  local word
  for word in "${@:2}"; do says "$word" || return 1; done
}

test_checkpoint_of_two_ranks_is_verified_against_its_model() {
  built_checkpoint 'e.mkCheckpoint { inherit (e.catalogue.tiny-qwen3) model; tensorParallel = 2; }' || return 1
  local checkpoint=$path
  [ -e "$checkpoint/rank0.safetensors" ] && [ -e "$checkpoint/rank1.safetensors" ] && [ ! -e "$checkpoint/rank2.safetensors" ] &&
    built_checkpoint 'e.catalogue.tiny-qwen3.model' || return 1
  local model=$path
  built_checkpoint 'e.enginix-core' &&
    quietly "$path/bin/enginix" verify-checkpoint "$checkpoint" --against "$model" && says verified || return 1
  # A check that cannot fail would prove nothing: the same, with one byte of a weight changed.
  cp -rL "$checkpoint" "$tmp/damaged" && chmod -R u+w "$tmp/damaged"
  python3 - "$tmp/damaged/rank1.safetensors" <<'END' || return 1
import sys
with open(sys.argv[1], "r+b") as f:
    f.seek(-1000, 2)
    byte = f.read(1)[0]
    f.seek(-1000, 2)
    f.write(bytes([byte ^ 0x7F]))
END
  ! quietly "$path/bin/enginix" verify-checkpoint "$tmp/damaged" --against "$model" && says rank1.safetensors
}

test_checkpoint_that_does_not_verify_is_not_built() {
  ! with_lib build 'let
      model = e.catalogue.tiny-qwen3.model;
      broken = nixpkgs.runCommand "nan-in-a-weight" { passthru = { inherit (model) model quantization modelName; }; } "
        cp -rL ${model} $out && chmod -R u+w $out && cd $out
        printf \"\\\\300\\\\177\" | dd of=model.safetensors bs=1 conv=notrunc seek=$(( $(stat -c %s model.safetensors) - 2 ))";
    in e.mkCheckpoint { model = broken; }' --no-link -L && says 'holds NaN or an infinity'
}

gpt2='
  model = nixpkgs.runCommand "random-gpt2" {
    nativeBuildInputs = [ e.modelopt-python ];
    script = builtins.toFile "gpt2.py" "import os, torch, transformers\ntorch.manual_seed(7)\nconfig = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=64, vocab_size=160, bos_token_id=1, eos_token_id=2)\nmodel = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)\nmodel.save_pretrained(os.environ[\"out\"])\n";
    inherit (e) environment;
    passthru = { quantization = null; modelName = "gpt2"; model = { architecture = "GPT2LMHeadModel"; heads = 4; layers = 2; }; };
  } "source $environment; python3 $script";'
# What the cases of ModelOpt have in common: it is converted once, and once more to be compared.
gpt2_checkpoint="let $gpt2 in e.mkCheckpoint { inherit model; converter = \"modelopt\"; tensorParallel = 2; gpusPerNode = 1; }"

test_checkpoint_by_modelopt() {
  built_checkpoint "$gpt2_checkpoint" || return 1
  quietly cat "$path/config.json" "$path/enginix.json" && says '"GPT2LMHeadModel"' && says 'learned_absolute' &&
    says '"converter": "modelopt"' && [ "$(echo "$path"/rank*.safetensors | wc -w)" = 2 ]
}

# The checkpoint of the case before, built once more.
test_checkpoint_by_modelopt_is_reproducible() {
  with_lib build "$gpt2_checkpoint" --no-link &&
    with_lib build "$gpt2_checkpoint" --no-link --rebuild
}

# The environment that quantizes and converts is one part of the scope.
test_checkpoint_by_modelopt_takes_the_given_python() {
  with_lib eval "
    let
      drv = scope: (scope.mkCheckpoint { model = $(named GPT2LMHeadModel); converter = \"modelopt\"; }).drvPath;
      given = nixpkgs.runCommand \"own-modelopt\" { } \"mkdir \$out\";
    in [ (builtins.any (d: d.outPath == given.outPath)
          ((e.override { modelopt-python = given; }).mkCheckpoint { model = $(named GPT2LMHeadModel); converter = \"modelopt\"; }).nativeBuildInputs)
        (drv e == drv (e.override { modelopt-python = given; })) ]" --json && says '[true,false]'
}

test_checkpoint_converter_must_take_the_architecture() {
  refused "model = $(named BaiChuanForCausalLM);" 'converter = "enginix" does not take BaiChuanForCausalLM' 'converter = "tensorrt_llm" (inside' Qwen3ForCausalLM &&
    refused "model = $(named Qwen3ForCausalLM); converter = \"modelopt\";" 'converter = "enginix" (CPU, pure) does' GPT2LMHeadModel &&
    refused "model = $(named Gemma3ForCausalLM); converter = \"tensorrt_llm\";" 'no converter takes Gemma3ForCausalLM' &&
    refused "model = $(named MptForCausalLM); converter = \"modelopt\"; tensorParallel = 8;" 'at most 4' &&
    refused "model = $(named GPT2LMHeadModel); converter = \"modelopt\"; pipelineParallel = 2;" 'offers tensorParallel only' &&
    refused "model = $(named GPT2LMHeadModel) // { quantization = \"FP8\"; }; converter = \"modelopt\";" 'converts unquantized models' &&
    refused "model = $(named Qwen3ForCausalLM) // { model = { architecture = \"Qwen3ForCausalLM\"; modelType = \"qwen2\"; }; };" 'its model_type is qwen2' 'Qwen3ForCausalLM has qwen3' &&
    refused "model = $(named MptForCausalLM) // { model = { architecture = \"MptForCausalLM\"; modelType = \"gpt2\"; }; };" 'its model_type is gpt2' 'MptForCausalLM has mpt' &&
    refused "model = $(named GPT2LMHeadModel); converter = \"modelop\";" 'Did you mean modelopt?'
}

# Options of architectures that are read by rows: what conversion would refuse.
test_checkpoint_of_a_family_is_refused_at_evaluation() {
  refused "model = $(named BloomForCausalLM); tensorParallel = 2; pipelineParallel = 2;" 'pipelineParallel = 2: BloomForCausalLM does not take it' &&
    refused "model = $(named BloomForCausalLM) // { quantization = \"FP8\"; };" 'converts BloomForCausalLM unquantized only' &&
    refused "model = $(named BloomForCausalLM) // { quantization = \"FP8\"; };" 'Pass the unquantized model.' &&
    refused "model = $(named BloomForCausalLM) // { quantization = \"FP9\"; };" 'quantize with ModelOpt to one of' W8A8_SQ_PER_CHANNEL. &&
    refused "model = $(named Qwen3ForCausalLM) // { quantization = \"FP9\"; };" '; or serve this one with the llmapi kind' &&
    refused "model = $(named GemmaForCausalLM) // { quantization = \"NVFP4\"; };" 'converts GemmaForCausalLM in FP8, ' &&
    refused "model = $(named Gemma2ForCausalLM) // { model = { architecture = \"Gemma2ForCausalLM\"; kvHeads = 4; }; }; tensorParallel = 8;" 'with 4 KV heads' &&
    refused "model = $(named OPTForCausalLM) // { model = { architecture = \"OPTForCausalLM\"; vocabulary = 50265; }; }; tensorParallel = 2;" 'with a vocabulary of 50265' &&
    refused "model = $(named BaichuanForCausalLM); variant = \"v1_7\";" 'variant' v1_7b &&
    refused "model = $(named Qwen3ForCausalLM); variant = \"v1_7b\";" 'Qwen3ForCausalLM has none' &&
    refused "model = $(named ChatGLMModel); converter = \"tensorrt_llm\"; variant = \"chatglm3\";" 'variant needs converter'
}

test_checkpoint_of_ranks_that_fill_no_nodes_is_refused_at_evaluation() {
  refused "model = $(named Qwen3ForCausalLM); tensorParallel = 12;" 'gpusPerNode = 8' '= 12 ranks' 'on one node: gpusPerNode = 12' \
    'gpusPerNode = 1 or 2 or 3 or 4 or 6' '8 or 16 of them' &&
    refused "model = $(named Qwen3ForCausalLM); tensorParallel = 8; gpusPerNode = 3;" '= 8 ranks neither fit one node of 3 GPUs nor fill several' &&
    refused "model = $(named Qwen3ForCausalLM); gpusPerNode = 0;" 'a whole number from 1 to 999' &&
    refused "model = $(named Qwen3ForCausalLM); gpusPerNode = \"4\";" 'a whole number from 1 to 999' &&
    refused "model = $(named Qwen3ForCausalLM); gpuPerNode = 4;" 'Did you mean gpusPerNode?' &&
    refused 'model = e.catalogue.tiny-qwen3.model; tensorParallel = 4; gpusPerNode = 3;' 'gpusPerNode = 1 or 2'
}

# In the sandbox: the file that an engine's nodes are read from, and of what ModelOpt writes.
test_checkpoint_says_how_many_gpus_a_node_has() {
  built_checkpoint 'e.mkCheckpoint { inherit (e.catalogue.tiny-qwen3) model; tensorParallel = 4; gpusPerNode = 2; }' &&
    quietly cat "$path/config.json" "$path/enginix.json" && says '"gpus_per_node": 2' && says '"gpusPerNode": 2' &&
    built_checkpoint "$gpt2_checkpoint" &&
    quietly cat "$path/config.json" && says '"gpus_per_node": 1'
}

test_checkpoint_of_a_format_without_engines_is_refused_at_evaluation() {
  refused "model = $(named Qwen3ForCausalLM) // { quantization = \"W8A16\"; };" 'quantization W8A16 cannot become' W8A8_SQ_PER_CHANNEL &&
    refused "model = $(named Qwen3ForCausalLM) // { quantization = \"NVFP4_AWQ\"; };" 'quantization NVFP4_AWQ cannot become' 'quantize to NVFP4' &&
    refused "model = $(named Qwen3MoeForCausalLM) // { model = { architecture = \"Qwen3MoeForCausalLM\"; experts = 8; quantization = \"W4A16_AWQ\"; }; };" 'is for dense models' 'FP8 or NVFP4' &&
    refused "model = $(named Qwen3ForCausalLM) // { model = { architecture = \"Qwen3ForCausalLM\"; quantization = \"FP8\"; quantizationMethod = \"fp8-block\"; }; };" 'weight_block_size' 'llmapi'
}

# What ModelOpt would write in a format that has no engine, refused before anything is quantized.
test_checkpoint_of_int8_weights_is_refused_before_they_are_quantized() {
  refused 'model = e.mkQuantized { inherit (e.catalogue.tiny-qwen3) model; format = "int8_wo"; };' 'quantization W8A16 cannot become' 'Instead: quantize to W8A8_SQ_PER_CHANNEL'
}

by_the_runtime='standin = import (root + "/tests/standin") { pkgs = nixpkgs; };
  checkpoint = e.mkCheckpoint (fresh_name { inherit model; converter = "tensorrt_llm"; target = "h200"; runtime = standin.runtime e "trtllm-1.2.1" { }; });
  fresh_name = a: a // { name = "gpt2-${builtins.substring 0 12 (builtins.hashString "sha256" (fresh { }).salt)}"; };'

test_checkpoint_by_the_runtime_needs_a_gpu_builder() {
  ! with_lib build "let $gpt2 $by_the_runtime in checkpoint" --no-link && says 'cuda-sm90' && says 'is required to build'
}

# The stand-in runtime has no tensorrt_llm to convert with: what is seen is the way into it.
test_checkpoint_by_the_runtime_runs_inside_it() {
  ! ENGINIX_NIX_CONFIG='extra-system-features = cuda cuda-sm90' with_lib build "let $gpt2 $by_the_runtime in checkpoint" --no-link -L &&
    says 'error: tensorrt_llm cannot be imported'
}

test_checkpoint_by_the_runtime_wants_the_engine_era() {
  refused "model = $(named FalconForCausalLM); converter = \"tensorrt_llm\"; runtime = \"trtllm-1.3.0rc26\";" 'has no engine path'
}
