# shellcheck shell=bash disable=SC2154,SC2016
# The reference's answers: one derivation for all engines of a model.

# Engines of the tiny model in two formats; nothing of ModelOpt is built for an evaluation.
engines_of() {
  echo "let
    inherit (e.catalogue.tiny-qwen3) model;
    calibration = e.mkCalibration { tokenizer = model; size = 8; sequenceLength = 64; };
    q = format: e.mkQuantized { inherit model calibration format; };
    mk = args: e.mkEngine ({ kind = \"reference\"; inherit model; } // args);
    answers = engine: engine.reference.drvPath;
    needs = engine: builtins.elem engine.reference.drvPath (builtins.attrNames (builtins.getContext engine.drvAttrs.flags));
  in $1"
}

test_answers_are_shared_by_every_format() {
  with_lib eval "$(engines_of '
    let
      engines = [ (mk { }) (mk { model = q "fp8"; }) (mk { model = q "int4_awq"; name = "other"; }) ];
      one = (e.mkReferenceAnswers { inherit model; }).drvPath;
    in map (engine: needs engine && answers engine == one) engines')" && says '[ true true true ]'
}

# A threshold is no input of the answers; another question is.
test_answers_do_not_depend_on_a_threshold() {
  with_lib eval "$(engines_of '
    let
      strict = mk { model = q "fp8"; gates.perplexity.ratio = 1.001; };
      loose = mk { model = q "fp8"; gates.perplexity.ratio = 9; };
      asked = e.mkReferenceAnswers { inherit model; questions = builtins.toFile "q.jsonl" "{}"; };
    in [ (answers strict == answers loose) (strict.drvPath == loose.drvPath) (asked.drvPath == answers strict) ]')" &&
    says '[ true false false ]'
}

# The default thresholds are a table of the package, and what judges is code of it; neither is in what asks the model.
test_answers_do_not_depend_on_what_judges() {
  with_lib build "$(engines_of '(builtins.elemAt (e.mkReferenceAnswers { inherit model; }).nativeBuildInputs 0)')" --no-link --json || return 1
  local package
  package=$(grep -o '"out":"[^"]*' "$out" | tail -n1 | cut -d'"' -f4)/lib/enginix
  [ -e "$package/data/questions/gate_text.json" ] && [ -e "$package/evaluation/reference_answers/reference_asker.py" ] &&
    [ ! -e "$package/data/judgement/gates.json" ] && [ ! -e "$package/evaluation/judgement" ] && [ ! -e "$package/evaluation/engine_judgement" ] &&
    [ ! -e "$package/reference" ]
}

# From a model to two gated engines: the model is asked once, and its weights are in no engine's closure but their own.
test_answers_gate_an_engine() {
  local salt=$EPOCHREALTIME path
  with_lib build "$(engines_of 'mk { name = "answered"; gates.logits.tolerance = 0.001; }')" --no-link --json || return 1
  path=$(grep -o '"out":"[^"]*' "$out" | tail -n1 | cut -d'"' -f4)
  # What was built before has its log.
  quietly nix-store --read-log "$path" && says 'gate logits: passed' && says '0.001 allowed' || return 1
  # The next engine would be built with those answers.
  with_lib build "$(engines_of "mk { name = \"again-$salt\"; gates.logits.tolerance = 0.002; }")" --no-link --dry-run &&
    says "again-$salt-engine.drv" && [ "$(grep -c '\.drv$' "$out")" = 1 ] || return 1
  with_lib build "$(engines_of 'e.mkReferenceAnswers { inherit model; }')" --no-link --json || return 1
  path=$(grep -o '"out":"[^"]*' "$out" | tail -n1 | cut -d'"' -f4)
  [ -s "$path/answers.json" ] && [ -s "$path/answers.safetensors" ] && [ -s "$path/logits.safetensors" ] || return 1
  quietly "$nix" path-info -r "$path" && [ "$(wc -l <"$out")" = 1 ]
}

test_answers_refusals_at_evaluation() {
  ! with_lib eval "$(engines_of '(e.mkReferenceAnswers { model = q "fp8"; }).drvPath')" && says 'would be compared with itself' || return 1
  ! with_lib eval "$(engines_of '(e.mkReferenceAnswers { inherit model; question = 1; }).drvPath')" && says 'Did you mean questions?' || return 1
  ! with_lib eval "$(engines_of '(mk { model = removeAttrs (q "fp8") [ "original" ]; }).drvPath')" && says 'reference = mkHfModel' || return 1
  # Not gated: no reference answers are needed.
  with_lib eval "$(engines_of '(mk { model = removeAttrs (q "fp8") [ "original" ]; gates = { }; }).reference')" && says null
}

test_answers_to_own_questions_are_asked_of_the_engine_too() {
  with_lib eval "$(engines_of '
    let
      questions = builtins.toFile "own.jsonl" "{}";
      engine = mk { model = q "fp8"; reference = e.mkReferenceAnswers { inherit model questions; }; };
      given = f: builtins.length (builtins.split "--questions.*own.jsonl" f) == 3;
    in [ (given engine.drvAttrs.flags) (given (mk { model = q "fp8"; }).drvAttrs.flags) ]')" && says '[ true false ]' || return 1
  # The model that something was quantized from, or any other: its answers are one derivation, too.
  with_lib eval "$(engines_of '(e.mkEngine { kind = "reference"; quantized = q "fp8"; reference = model; }).reference.drvPath == (mk { }).reference.drvPath')" && says true
}

test_answers_of_another_model_are_refused() {
  with_lib eval "$(engines_of '(mk { reference = null; }).reference')" && says null || return 1
  ! with_lib build "$(engines_of "mk { name = \"mute-$EPOCHREALTIME\"; reference = nixpkgs.runCommand \"no-answers\" { passthru.artefact = \"answers\"; } ''
      mkdir \$out; echo '{}' > \$out/answers.json
    ''; }")" --no-link -L && says 'no-answers: no enginix.json'
}

# Any two artefacts: nothing of ModelOpt is built for it.
test_comparison_is_a_page_without_references() {
  with_lib build "$(engines_of "e.mkComparison { engines = [ (mk { }) e.catalogue.tiny-qwen3.checkpoint model ]; name = \"comparison-$EPOCHREALTIME\";
    speed = { on = \"a stand-in\"; tokensPerSecond.\"tiny-qwen3, reference engine\" = 12.5; }; }")" --no-link --json -L || return 1
  local path
  path=$(grep -o '"out":"[^"]*' "$out" | tail -n1 | cut -d'"' -f4)
  grep -q '12.5' "$path/compare.html" && grep -q '"verdict": "passed"' "$path/compare.json" || return 1
  quietly "$nix" path-info -r "$path" && [ "$(wc -l <"$out")" = 1 ] || return 1
  ! with_lib eval '(e.mkComparison { engines = [ ]; }).drvPath' && says 'at least one'
}
