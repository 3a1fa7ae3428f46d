# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# Arguments of a wrong shape. builtins.tryEval catches what a function throws and not Nix's own errors, such as a
# missing attribute: one of these ends the whole evaluation.

shapes='
  model = e.catalogue.tiny-qwen3.model;
  described = { like = "trtllm-1.4.0rc1"; image = "a.b/c:1.4.0rc2"; versions.tensorrtLlm = "1.4.0rc2"; };
  wrong = {
    number = 3; fraction = 1.5; bool = true; empty = ""; name = "no such thing"; path = ./.; list = [ ];
    numbers = [ 0 ]; sets = [ { sm = 89; } ]; lists = [ [ "l4" ] ]; nulls = [ null ]; functions = [ (x: x) ]; set = { };
    sm = { sm = 89; }; text-sm = { sm = "89"; memoryGB = 16; }; text-memory = { sm = 89; memoryGB = "16"; };
    gpu = { gpu = 3; }; gpus = { gpu = [ "l4" ]; }; both = { gpu = "l4"; sm = 89; }; count = { gpu = "l4"; count = "2"; };
    driver = { gpu = "l4"; driver = 590; }; strange = { gpu = "l4"; cuont = 2; }; function = x: x; derivation = model;
    inherit described; id = { id = "trtllm-1.2.1"; }; row = { id = "trtllm-1.2.1"; row = { }; }; kind = { kind = 3; };
    like = { like = 3; image = 3; versions = 3; };
  };
  fails = value: !(builtins.tryEval (builtins.deepSeq value true)).success;
  drv = value: if value ? drvPath then value.drvPath else builtins.mapAttrs (_: drv) value;
  engine = kind: arguments: drv (e.mkEngine ({ inherit kind model; } // arguments));
  target = kind: value: engine kind ({ target = value; } // (if kind == "llmapi" || kind == "tensorrt" then { gates = { }; } else { }));
  runtime = kind: value: engine kind ({ runtime = value; gates = { }; } // (if kind == "llmapi" then { } else { target = "l4"; }));
  repo = e.mkTritonRepo { engine = e.mkEngine { kind = "llmapi"; inherit model; gates = { }; }; };
  places = {
    tensorrt-target = target "tensorrt"; llmapi-target = target "llmapi"; edgellm-target = target "edgellm"; reference-target = target "reference";
    tensorrt-runtime = runtime "tensorrt"; llmapi-runtime = runtime "llmapi"; edgellm-runtime = runtime "edgellm";
    reference-runtime = value: engine "reference" { runtime = value; }; rtx-runtime = value: engine "rtx" { runtime = value; };
    rtx-targets = value: engine "rtx" { targets = value; }; rtx-target-of-a-list = value: engine "rtx" { targets = [ value ]; };
    matrix = value: drv (e.mkEngineMatrix { inherit model; gates = { }; targets = value; });
    matrix-of-a-list = value: drv (e.mkEngineMatrix { inherit model; gates = { }; targets = [ value ]; });
    matrix-of-a-set = value: drv (e.mkEngineMatrix { inherit model; gates = { }; targets.a = value; });
    runner-target = value: drv (e.mkRunner { inherit model; target = value; }); runner-runtime = value: drv (e.mkRunner { inherit model; runtime = value; });
    quantized-target = value: drv (e.mkQuantized { inherit model; format = "int4_wo"; target = value; });
    quantized-format = value: drv (e.mkQuantized { inherit model; format = value; });
    limits = value: drv (e.mkRunner { inherit model; runtime = "trtllm-1.4.0rc1"; limits.maxSeqLen = value; });
    checkpoint-target = value: drv (e.mkCheckpoint { inherit model; target = value; });
    checkpoint-runtime = value: drv (e.mkCheckpoint { inherit model; runtime = value; });
    converted-target = value: drv (e.mkCheckpoint { inherit model; converter = "tensorrt_llm"; target = value; });
    converted-runtime = value: drv (e.mkCheckpoint { inherit model; converter = "tensorrt_llm"; runtime = value; });
    triton-runtime = value: drv (e.mkTritonServer { inherit repo; runtime = value; });
    runtime-id = value: drv (e.mkRuntime { id = value; }); runtime-like = value: drv (e.mkRuntime (described // { like = value; }));
    runtime-image = value: drv (e.mkRuntime (described // { image = value; })); runtime-pin = value: drv (e.mkRuntime { id = "trtllm-1.2.1"; pin = if builtins.isPath value then { } else value; });
    runtime-version = value: drv (e.mkRuntime (described // { versions.tensorrtLlm = value; }));
    runtime-versions = value: drv (e.mkRuntime (described // { versions = value; }));
    serve-engine = value: drv (e.mkServe { engine = value; }); repo-engine = value: drv (e.mkTritonRepo { engine = value; });
    server-repo = value: drv (e.mkTritonServer { repo = value; });
  };
'

test_wrong_shapes_of_targets_and_runtimes_are_refused() {
  with_lib eval "let $shapes
      taken = place: builtins.filter (name: !fails (places.\${place} wrong.\${name})) (builtins.attrNames wrong);
      told = builtins.filter (text: text != \"\") (map (place: builtins.concatStringsSep \" \" (map (name: \"\${place}=\${name}\") (taken place))) (builtins.attrNames places));
    in builtins.concatStringsSep \" \" told" && [ "$(tail -n 1 "$out")" = '""' ]
}

# Arguments that have one shape in every function, and what is never one of them.
test_wrong_shapes_of_other_arguments_are_refused() {
  with_lib eval "let $shapes
      never = { number = 3; fraction = 1.5; bool = true; numbers = [ 0 ]; function = x: x; };
      pinned = { repo = \"a/b\"; revision = \"0000000000000000000000000000000000000000\"; hash = \"\"; };
      calls = {
        model = value: drv (e.mkCheckpoint { model = value; });
        answers = value: drv (e.mkReferenceAnswers { model = value; }); quantized = value: drv (e.mkQuantized { model = value; format = \"int4_wo\"; });
        engine-model = value: engine \"llmapi\" { model = value; }; checkpoint = value: engine \"reference\" { checkpoint = value; };
        tokenizer = value: drv (e.mkCalibration { tokenizer = value; }); lock = value: drv (e.mkHfModel { lock = value; });
        repo = value: drv (e.mkHfModel (pinned // { repo = value; })); server = value: drv (e.mkOciImage { server = value; });
        directory = value: e.mkPinned { directory = value; }; format = value: drv (e.mkQuantized { inherit model; format = value; });
        converter = value: drv (e.mkCheckpoint { inherit model; converter = value; }); profile = value: engine \"tensorrt\" { target = \"l4\"; profile = value; };
        engine-kind = value: drv (e.mkEngine { inherit model; kind = value; });
        limits = value: engine \"llmapi\" { limits = value; }; llmArgs = value: engine \"llmapi\" { llmArgs = value; };
        plugins = value: engine \"tensorrt\" { target = \"l4\"; plugins = value; }; lora = value: engine \"tensorrt\" { target = \"l4\"; lora = value; };
        speculative = value: engine \"tensorrt\" { target = \"l4\"; speculative = value; }; flags = value: drv (e.mkTritonServer { repo = e.catalogue.tiny-qwen3.triton-repo; flags = value; });
        servers = value: drv (e.mkGateway { servers = value; });
      };
      taken = name: builtins.filter (shape: !fails (calls.\${name} never.\${shape})) (builtins.attrNames never);
    in builtins.concatMap (name: map (shape: \"\${name}=\${shape}\") (taken name)) (builtins.attrNames calls)" && [ "$(tail -n 1 "$out")" = '[ ]' ]
}

test_functions_want_a_set_and_their_arguments() {
  with_lib eval "let $shapes
      functions = builtins.filter (name: builtins.substring 0 2 name == \"mk\") (builtins.attrNames e);
      calls = { set = { }; number = 3; text = \"a\"; list = [ ]; nothing = null; };
      taken = function: builtins.filter (name: !fails (drv (e.\${function} calls.\${name}))) (builtins.attrNames calls);
    in builtins.concatMap (function: map (name: \"\${function} \${name}\") (taken function)) functions" && [ "$(tail -n 1 "$out")" = '[ ]' ]
}
