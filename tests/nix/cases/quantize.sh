# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# Calibration and quantization by the real ModelOpt, in sandboxed builds on a CPU.

# An expression over the tiny model and a small calibration of it.
quantized_of() {
  echo "let
    inherit (e.catalogue.tiny-qwen3) model;
    calibration = e.mkCalibration { tokenizer = model; size = 8; sequenceLength = 64; };
    q = args: e.mkQuantized ({ inherit model calibration; } // args);
  in $1"
}

store_path() { grep -o '"out":"[^"]*' "$out" | tail -n1 | cut -d'"' -f4; }

made() { # expression → store path in $path
  with_lib build "$(quantized_of "$1")" --no-link --json -L || return 1
  path=$(store_path)
  [ -n "$path" ]
}

test_calibration_is_the_same_twice_and_needs_no_weights() {
  made calibration && local first=$path || return 1
  [ -s "$first/calibration.safetensors" ] && grep -q '"text": {' "$first/enginix.json" || return 1
  with_lib build "$(quantized_of calibration)" --no-link --rebuild || return 1
  # The weights are no input of it.
  with_lib eval "$(quantized_of 'calibration.drvPath')" --raw || return 1
  quietly nix-store -qR "$(grep -o '/nix/store/[^ ]*drv$' "$out")" && says tokenizer.json.drv && ! grep -q 'model.safetensors' "$out"
}

test_calibration_of_ones_own_text() {
  mkdir -p "$tmp/text"
  seq 1 4000 | sed 's/$/ bottles of text on the wall/' >"$tmp/text/song.txt"
  made "e.mkCalibration { tokenizer = model; text = $tmp/text; size = 4; sequenceLength = 32; seed = 7; }" &&
    grep -q '"seed": 7' "$path/enginix.json" && ! grep -q pydoc_data "$path/enginix.json"
}

# Nothing but the tokenizer is named; and what an error names instead of a size that is too large, is built.
test_calibration_by_default_and_by_the_fix_that_is_named() {
  local fix
  made "e.mkCalibration { tokenizer = model; }" && grep -q '"sequenceLength": 512' "$path/enginix.json" || return 1
  ! made 'e.mkCalibration { tokenizer = model; size = 9999; }' || return 1
  fix=$(grep -o 'mkCalibration: size = [0-9]*' "$out" | head -n1)
  [ -n "$fix" ] && made "e.mkCalibration { tokenizer = model; ${fix#mkCalibration: }; }" || return 1
  quantize_refused 'e.mkCalibration { tokenizer = model; sequenceLength = 4096; }' 'Take sequenceLength = 2048.' &&
    quantize_refused 'e.mkCalibration { tokenizer = model; size = 0; }' 'size'
}

# Built again where an input has changed. FP8's model is also that of the cases below.
chain() { # format, algorithm in the checkpoint
  made "e.mkCheckpoint { model = q { format = \"$1\"; }; }" || return 1
  grep -q "\"quant_algo\": \"$2\"" "$path/config.json" && grep -q '"artefact": "quantized-model"' "$path/enginix.json" &&
    grep -q '"repo": "enginix/tiny-qwen3"' "$path/enginix.json" &&
    python3 -m enginix verify-checkpoint "$path" >"$out" 2>&1
}

test_quantize_chain_fp8() { PYTHONPATH=python with_core chain fp8 FP8; }
test_quantize_chain_nvfp4() { PYTHONPATH=python with_core chain nvfp4 NVFP4; }
# The same derivations, by other formats of ModelOpt.
test_quantize_chain_int4_awq() { slow && PYTHONPATH=python with_core chain int4_awq W4A16_AWQ; }
test_quantize_chain_int8_sq() { slow && PYTHONPATH=python with_core chain int8_sq W8A8_SQ_PER_CHANNEL; }

with_core() { PATH=$(tests/hostpkgs/environments.sh core)/bin:$PATH "$@"; }

test_quantized_model_is_data() {
  made 'q { format = "fp8"; }' || return 1
  [ -e "$path/hf_quant_config.json" ] && [ -e "$path/tokenizer.json" ] && [ -e "$path/chat_template.jinja" ] || return 1
  quietly "$nix" path-info -r "$path" && [ "$(wc -l <"$out")" = 1 ] && ! grep -rq /nix/store "$path"
}

test_quantized_the_same_bytes_twice() {
  with_lib build "$(quantized_of 'q { format = "fp8"; }')" --no-link &&
    with_lib build "$(quantized_of 'q { format = "fp8"; }')" --no-link --rebuild
}

# Another option of calibration is another quantized model; the same one under another target is not.
test_quantized_depends_on_its_calibration_and_not_on_the_target() {
  with_lib eval "$(quantized_of 'let
    other = e.mkCalibration { tokenizer = model; size = 8; sequenceLength = 64; seed = 5; };
    drv = args: (q ({ format = "fp8"; } // args)).drvPath;
  in [ (drv { } == drv { target = "h200"; }) (drv { } == drv { calibration = other; }) ]')" && says '[ true false ]'
}

test_quantized_killed_leaves_nothing() {
  local name=tiny-killed-$RANDOM$RANDOM build victim path
  with_lib eval "$(quantized_of "(q { format = \"int4_awq\"; name = \"$name\"; }).outPath")" --raw || return 1
  path=$(grep -o '/nix/store/[^ ]*$' "$out")
  with_lib build "$(quantized_of calibration)" --no-link || return 1
  (with_lib build "$(quantized_of "q { format = \"int4_awq\"; name = \"$name\"; }")" --no-link) &
  build=$!
  for _ in $(seq 3000); do
    # The builder's own process: no other process has this word in its command line.
    victim=$(pgrep -f -- "quantize .*--name $name" | head -n1)
    [ -n "$victim" ] && break
    kill -0 "$build" 2>/dev/null || return 1
    sleep 0.1
  done
  # Under way, and not yet at its end: the import of its libraries alone takes longer.
  sleep 0.5
  kill -9 "$victim" || return 1
  ! wait "$build" && says 137 && ! "$nix" path-info "$path" >/dev/null 2>&1 && [ ! -e "$path" ]
}

quantize_refused() { # expression, words of the message …
  ! with_lib eval "$(quantized_of "($1).drvPath")" || return 1
  local word
  for word in "${@:2}"; do says "$word" || return 1; done
}

test_quantize_refusals_at_evaluation() {
  quantize_refused 'q { format = "fp9"; }' 'unknown format "fp9"' 'fp8' &&
    quantize_refused 'q { format = "mxfp4"; }' 'Use nvfp4' &&
    quantize_refused 'q { format = "nvfp4"; target = "h200"; }' 'NVFP4 needs SM 100 or later; target "h200" is SM 90' &&
    quantize_refused 'q { format = "int4_awq"; target = "b200"; }' 'refuses W4A16_AWQ' &&
    quantize_refused 'q { format = "fp8"; calibration = null; }' 'mkCalibration { tokenizer = model; }' &&
    quantize_refused 'q { format = "fp8"; effectiveBits = 6.0; }' 'are for format = "mixed"' &&
    quantize_refused 'q { format = "mixed"; }' 'needs a budget' &&
    quantize_refused 'q { format = "mixed"; effectiveBits = 6.0; candidates = [ "nvfp4" "fp8" ]; }' 'needs device = "cuda"' &&
    quantize_refused 'q { format = "mixed"; effectiveBits = 6.0; candidates = [ "int4_awq" "int4_awq" ]; }' 'two or more of' &&
    quantize_refused 'q { format = "mixed"; effectiveBits = 3; }' 'effectiveBits = 3 is not between 4 (all w4a8_awq)' &&
    quantize_refused 'q { format = "mixed"; effectiveBits = "6.0"; }' 'must be a number' &&
    quantize_refused 'q { format = "fp8"; kvCache = "int8"; }' 'known to give garbage' &&
    quantize_refused 'q { format = "fp8"; kvcache = "fp8"; }' 'Did you mean kvCache' &&
    quantize_refused 'q { format = "fp8"; model = q { format = "fp8"; }; }' 'quantized already (FP8)' &&
    quantize_refused 'q { format = "fp8"; model = model // { weightBytes = 16000000000; }; }' '16 GB of weights are too much for a CPU' 'memory for 25 GB' &&
    quantize_refused 'q { format = "nvfp4"; model = model // { model = model.model // { intermediateSize = 100; }; }; }' 'intermediateSize is 100' &&
    quantize_refused 'q { format = "int8_sq"; model = model // { model = model.model // { experts = 8; }; }; }' 'for dense models' &&
    quantize_refused 'e.mkCalibration { tokenizer = model; sequenceLength = 4096; }' "the model's context is 2048" &&
    quantize_refused 'e.mkCalibration { tokenizer = model; sequenceLength = "512"; }' 'must be a whole number'
}

test_quantize_warns_of_an_fp8_cache_on_a_small_model() {
  with_lib eval "$(quantized_of '(q { format = "fp8"; kvCache = "fp8"; }).model.kvCacheQuantization')" &&
    says '30 billion parameters' && says FP8
}

test_quantize_on_a_gpu_needs_a_builder_that_has_one() {
  with_lib eval "$(quantized_of '(q { format = "fp8"; model = model // { weightBytes = 16000000000; }; device = "cuda"; }).drvPath')" || return 1
  ! with_lib build "$(quantized_of 'q { format = "fp8"; device = "cuda"; }')" --no-link && says 'cuda' && says 'is required to build'
}

# What later stages ask of a model at evaluation.
test_quantized_is_a_model_to_later_stages() {
  with_lib eval "$(quantized_of 'let
    m = q { format = "fp8"; };
    engine = e.mkEngine { kind = "tensorrt"; model = m; target = "h200"; };
  in [ m.quantization m.modelName (m.weightBytes > 0 && m.weightBytes < model.weightBytes) (builtins.isString engine.name) ]')" &&
    says '"FP8" "tiny-qwen3-fp8" true true'
}
