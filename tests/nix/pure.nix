# Evaluation tests: name -> { expr; expected; }. Each check function is shown accepting and refusing.
{ lib, check }:
let
  fails = e: !(builtins.tryEval (builtins.deepSeq e e)).success;
  sha = lib.concatStringsSep "" (builtins.genList (_: "a") 64);
  commit = lib.concatStringsSep "" (builtins.genList (_: "0") 40);
  lock = {
    version = 1;
    repo = "owner/name";
    revision = commit;
    files."config.json" = {
      sha256 = sha;
      size = 2;
    };
  };
  flagsOf = check.flags.words {
    where = "f";
    name = "p";
    it = "p";
    option = "--flag";
  };
  flagRows = {
    count.type = "int";
    rate.type = "float";
    on.type = "bool";
    bare.type = "switch";
    text.type = "string";
    list = {
      type = "string";
      repeatable = true;
    };
    late = {
      type = "int";
      since = "2.10.0";
    };
    mine = {
      type = "int";
      own = "elsewhere";
    };
    shut = {
      type = "int";
      refused = "no";
    };
  };
  parse = check.lock.parse "test.lock.json";
  parallelism = check.checkpoint.parallelism "f";
  nodes = check.checkpoint.nodes "f";
  converter = check.checkpoint.converter "f" (lib.importJSON ../../python/enginix/data/models/converters.json);
  family = check.checkpoint.family "f" (lib.importJSON ../../python/enginix/data/models/family_rows.json);
  formats = lib.importJSON ../../python/enginix/data/models/number_formats.json;
  quantization = check.checkpoint.quantization "f" formats;
  says = model: quantization { inherit model; };
  of = architecture: parallel: {
    model = { inherit architecture; };
    quantization = null;
    parallel = one // parallel;
  };
  one = {
    tensorParallel = 1;
    pipelineParallel = 1;
    expertParallel = 1;
  };
  ada = {
    name = "l40s";
    sm = 89;
  };
  hopper = {
    name = "h200";
    sm = 90;
  };
  blackwell = {
    name = "b200";
    sm = 100;
  };
  planned = {
    layers = 4;
    heads = 8;
    kvHeads = 4;
    headSize = 32;
    hiddenSize = 128;
    intermediateSize = 512;
    vocabulary = 2048;
    context = 2048;
    dtype = "bfloat16";
    weightBytes = 2891312;
  };
  smallGpu = {
    name = "small";
    sm = 90;
    memory = 1000000000;
  };
in
{
  testNearestName = {
    expr = check.names.nearest "tensorParalel" [
      "dtype"
      "tensorParallel"
    ];
    expected = [ "tensorParallel" ];
  };
  testNothingNear = {
    expr = check.names.nearest "zzzz" [ "dtype" ];
    expected = [ ];
  };
  testUnknownNamesAll = {
    expr = check.names.unknown "kind" "tensort" [
      "reference"
      "tensorrt"
    ];
    expected = ''unknown kind "tensort". Did you mean tensorrt? Known: reference, tensorrt.'';
  };

  testOnlyAccepts = {
    expr = check.arguments.only "f" [ "a" ] { a = 1; };
    expected.a = 1;
  };
  testOnlyRefuses = {
    expr = fails (check.arguments.only "f" [ "a" ] { b = 1; });
    expected = true;
  };
  testCallPassesArguments = {
    expr = check.arguments.call "f" ({ a, b ? 2 }: a + b) { a = 1; };
    expected = 3;
  };
  testCallRefusesAnArgumentThatThePatternLacks = {
    expr = fails (check.arguments.call "f" ({ a }: a) { a = 1; b = 2; });
    expected = true;
  };
  testSecretInStore = {
    expr = map check.secrets.inStore [
      ./pure.nix
      "${builtins.storeDir}/x-key"
      "/run/secrets/key"
      "operator"
      null
    ];
    expected = [ true true false false false ];
  };
  testSecretOutsideStore = {
    expr = check.secrets.outsideStore "f" "keyFile" "/run/secrets/key";
    expected = "/run/secrets/key";
  };
  testSecretOutsideStoreRefuses = {
    expr = map (file: fails (check.secrets.outsideStore "f" "keyFile" file)) [
      ./pure.nix
      "${builtins.storeDir}/x-key"
    ];
    expected = [ true true ];
  };
  testLoopback = {
    expr = map check.address.isLoopback [ "127.0.0.1" "::1" "0.0.0.0" "::" "10.0.0.1" ];
    expected = [ true true false false false ];
  };
  testLocalAddress = {
    expr = map (host: check.address.local host 8000) [ "127.0.0.1" "0.0.0.0" "::" "fd00::1" "gpu1" ];
    expected = [ "127.0.0.1:8000" "127.0.0.1:8000" "[::1]:8000" "[fd00::1]:8000" "gpu1:8000" ];
  };
  testOneOfAccepts = {
    expr = check.arguments.oneOf "f" "dtype" [ "float16" ] "float16";
    expected = "float16";
  };
  testOneOfRefuses = {
    expr = fails (check.arguments.oneOf "f" "dtype" [ "float16" ] "fp16");
    expected = true;
  };
  testAtLeastAccepts = {
    expr = check.arguments.atLeast "f" "n" 1 1;
    expected = 1;
  };
  testAtLeastRefusesLess = {
    expr = fails (check.arguments.atLeast "f" "n" 1 0);
    expected = true;
  };
  testMinutes = {
    expr = map (n: fails (check.arguments.minutes "f" "n" n)) [ 0 (-5) 0.05 30 "30" null ];
    expected = [ true true false false true true ];
  };
  testBetween = {
    expr = map (n: fails (check.arguments.between "f" "n" 1 3 n)) [ 0 1 3 4 "2" ];
    expected = [ true false false true true ];
  };
  testLicenseOfSpdx = {
    expr = (check.license.named "apache-2.0").spdxId;
    expected = "Apache-2.0";
  };
  # Neither free nor not: nixpkgs then evaluates what bears it.
  testLicenseThatSpdxDoesNotKnow = {
    expr =
      let
        license = check.license.named "llama3.1";
      in
      [
        license.shortName
        (license ? free)
        (lib.hasPrefix "Licence \"llama3.1\"" license.fullName)
      ];
    expected = [
      "llama3.1"
      false
      true
    ];
  };

  testAtLeastRefusesText = {
    expr = fails (check.arguments.atLeast "f" "n" 1 "1");
    expected = true;
  };

  testRepoAccepts = {
    expr = check.lock.repo "f" "Qwen/Qwen2.5-7B-Instruct";
    expected = "Qwen/Qwen2.5-7B-Instruct";
  };
  testRepoRefusesPath = {
    expr = fails (check.lock.repo "f" "../x/y");
    expected = true;
  };
  testRevisionAcceptsCommit = {
    expr = check.lock.revision "f" "r" commit;
    expected = commit;
  };
  testRevisionRefusesBranch = {
    expr = fails (check.lock.revision "f" "r" "main");
    expected = true;
  };
  testPathAccepts = {
    expr = check.lock.path "l" "a/b.json";
    expected = "a/b.json";
  };
  testPathRefusesParent = {
    expr = fails (check.lock.path "l" "../etc/x");
    expected = true;
  };
  testPathRefusesAbsolute = {
    expr = fails (check.lock.path "l" "/etc/x");
    expected = true;
  };
  testPathRefusesTheManifests = {
    expr = fails (check.lock.path "l" "enginix.json");
    expected = true;
  };
  testPathRefusesBackslash = {
    expr = fails (check.lock.path "l" "a\\b");
    expected = true;
  };
  testPathRefusesWhatEndsALine = {
    expr = map (p: fails (check.lock.path "l" p)) [
      "a\n/etc/passwd"
      "a\tb"
      "a/.git/config"
      "ä/b c.json"
    ];
    expected = [
      true
      true
      true
      false
    ];
  };
  testParseKeepsFiles = {
    expr = (parse lock).files."config.json".path;
    expected = "config.json";
  };
  testParseRefusesVersion = {
    expr = fails (parse (lock // { version = 2; }));
    expected = true;
  };
  testParseRefusesShortHash = {
    expr = fails (parse (lock // { files."a".sha256 = "ab"; }));
    expected = true;
  };
  # A model's lock names no type, as it never did.
  testParseKnowsModelsAndDatasets = {
    expr = map (l: (parse (lock // l)).type) [
      { }
      { type = "model"; }
      { type = "dataset"; }
    ];
    expected = [
      "model"
      "model"
      "dataset"
    ];
  };
  testParseRefusesOtherTypes = {
    expr = map (type: fails (parse (lock // { inherit type; }))) [
      "space"
      null
      [ "dataset" ]
    ];
    expected = [
      true
      true
      true
    ];
  };
  # What the command refuses, and Nix can tell.
  testParseRefusesPickles = {
    expr = map (p: fails (parse (lock // { files.${p} = lock.files."config.json"; }))) [
      "pytorch_model.bin"
      "a/b.PT"
      "x.pth.json"
    ];
    expected = [
      true
      true
      false
    ];
  };
  testParseRefusesPathsThatClash = {
    expr =
      map
        (
          paths:
          fails (parse (lock // { files = builtins.listToAttrs (map (name: { inherit name; value = lock.files."config.json"; }) paths); }))
        )
        [
          [ "Config.json" "config.json" ]
          [ "a" "a/b.json" ]
          [ "A/b" "a/b/c.json" ]
          [ "A/b.json" "a/c.json" ]
          [ "ab" "a/b.json" "a/c.json" ]
        ];
    expected = [
      true
      true
      true
      false
      false
    ];
  };
  testParseRefusesUnknownKeys = {
    expr = map (l: fails (parse (lock // l))) [
      { comment = ""; }
      { files."config.json" = lock.files."config.json" // { mode = 1; }; }
      { select.tag = "v1"; }
      { select.revision = "v1"; }
    ];
    expected = [
      true
      true
      true
      false
    ];
  };
  testParseRefusesWhatIsNoLicense = {
    expr = map (license: fails (parse (lock // { inherit license; }))) [
      [ "mit" ]
      { }
      false
      "mit"
      null
    ];
    expected = [
      true
      true
      true
      false
      false
    ];
  };
  testParseRefusesOtherGates = {
    expr = map (gated: fails (parse (lock // { inherit gated; }))) [
      true
      null
      false
      "manual"
    ];
    expected = [
      true
      true
      false
      false
    ];
  };
  testParseRefusesNoFiles = {
    expr = fails (parse (lock // { files = { }; }));
    expected = true;
  };

  testParallelismAccepts = {
    expr = (parallelism { heads = 8; } (one // { tensorParallel = 4; })).tensorParallel;
    expected = 4;
  };
  testParallelismRefusesIndivisibleHeads = {
    expr = fails (parallelism { heads = 8; } (one // { tensorParallel = 3; }));
    expected = true;
  };
  testParallelismRefusesMoreStagesThanLayers = {
    expr = fails (parallelism { layers = 2; } (one // { pipelineParallel = 3; }));
    expected = true;
  };
  testParallelismRefusesIndivisibleKvHeads = {
    expr = map (tensorParallel: fails (parallelism { heads = 12; kvHeads = 4; } (one // { inherit tensorParallel; }))) [
      2
      3
      12
    ];
    expected = [
      false
      true
      false
    ];
  };
  testParallelismRefusesIndivisibleWidth = {
    expr = fails (parallelism { heads = 8; kvHeads = 8; intermediateSize = 100; } (one // { tensorParallel = 8; }));
    expected = true;
  };
  testParallelismOfExperts = {
    expr = map (p: fails (parallelism { heads = 8; experts = 6; expertIntermediateSize = 100; } (one // p))) [
      # Two ranks share an expert's 100 columns, eight cannot, and six experts are not dealt to four.
      { tensorParallel = 4; expertParallel = 2; }
      { tensorParallel = 8; }
      { tensorParallel = 4; expertParallel = 4; }
    ];
    expected = [
      false
      true
      true
    ];
  };
  testExpertsOfADenseModel = {
    expr = fails (parallelism { heads = 8; } (one // { tensorParallel = 2; expertParallel = 2; }));
    expected = true;
  };
  # One node, or several full ones.
  testNodes = {
    expr = map (p: fails (nodes (one // removeAttrs p [ "each" ]) p.each)) [
      { tensorParallel = 8; each = 8; }
      { tensorParallel = 2; each = 8; }
      { tensorParallel = 8; each = 4; }
      { tensorParallel = 4; pipelineParallel = 3; each = 4; }
      { tensorParallel = 12; each = 8; }
      { tensorParallel = 2; pipelineParallel = 3; each = 4; }
      { tensorParallel = 8; each = 3; }
    ];
    expected = [
      false
      false
      false
      false
      true
      true
      true
    ];
  };
  testNodesOfNoNumberOfGpus = {
    expr = map (each: fails (nodes one each)) [
      0
      (-4)
      1000
      "4"
      4.0
      null
      1
    ];
    expected = [
      true
      true
      true
      true
      true
      true
      false
    ];
  };
  # Every algorithm under every name that models give it, as a model or a lock spells it.
  testQuantizationAsTheTableSays = {
    expr = lib.filterAttrs (
      name: row: builtins.any (n: fails (says { quantization = n; }) == row.convert) ([ name ] ++ row.aliases)
    ) formats.algorithms;
    expected = { };
  };
  testQuantizationIsFoundByItsOldName = {
    expr = says { quantization = "INT8_SQ"; };
    expected = "W8A8_SQ_PER_CHANNEL";
  };
  testQuantizationOfAModelThatSaysNothing = {
    expr = [
      (quantization { model = { }; })
      (says { quantization = null; })
      (says { quantization = "MODELOPT"; quantizationMethod = "modelopt"; })
    ];
    expected = [
      null
      null
      null
    ];
  };
  testQuantizationMethodsAreRefused = {
    expr = builtins.filter (method: !fails (says { quantization = "FP8"; quantizationMethod = method; })) (
      builtins.attrNames formats.methods ++ [ "something-new" ]
    );
    expected = [ ];
  };
  # A lock that was written before quantizationMethod: what is nobody's algorithm is a method.
  testQuantizationMethodsOfOlderLocks = {
    expr = map (quantization: fails (says { inherit quantization; })) [
      "AWQ"
      "GPTQ"
      "COMPRESSED-TENSORS"
      "SOMETHING-NEW"
    ];
    expected = [
      true
      true
      true
      true
    ];
  };
  testQuantizationOfDenseModelsOnly = {
    expr = map (facts: fails (says facts)) [
      { quantization = "W4A16_AWQ"; }
      { quantization = "W4A16_AWQ"; experts = 8; }
      { quantization = "FP8"; experts = 8; }
    ];
    expected = [
      false
      true
      false
    ];
  };
  testQuantizationOfTheKvCache = {
    expr = map (kvCacheQuantization: fails (says { quantization = "FP8"; inherit kvCacheQuantization; })) [
      null
      "FP8"
      "NVFP4"
    ];
    expected = [
      false
      false
      true
    ];
  };
  testArchitectureAccepts = {
    expr = check.checkpoint.architecture "f" [ "LlamaForCausalLM" ] { architecture = "LlamaForCausalLM"; };
    expected.architecture = "LlamaForCausalLM";
  };
  testArchitectureRefuses = {
    expr = fails (check.checkpoint.architecture "f" [ "LlamaForCausalLM" ] { architecture = "MambaForCausalLM"; });
    expected = true;
  };
  testFamilyAccepts = {
    expr = map (m: family (m // { quantization = null; })) [
      { model.architecture = "BaichuanForCausalLM"; variant = "v2_7b"; parallel = one; }
      { model.architecture = "Qwen3ForCausalLM"; variant = null; parallel = one // { pipelineParallel = 2; }; }
      { model = { }; variant = "v2_7b"; parallel = one; }
    ];
    expected = [ "v2_7b" null "v2_7b" ];
  };
  testFamilyRefuses = {
    expr = map (m: fails (family ({ quantization = null; variant = null; parallel = one; } // m))) [
      { model.architecture = "GPT2LMHeadModel"; quantization = "NVFP4"; }
      { model.architecture = "FalconForCausalLM"; quantization = "FP8"; }
      { model.architecture = "GPT2LMHeadModel"; variant = "v2_7b"; }
      { model.architecture = "ChatGLMForConditionalGeneration"; variant = "v2_7b"; }
      { model.architecture = "OPTForCausalLM"; parallel = one // { pipelineParallel = 2; }; }
      { model = { architecture = "QWenLMHeadModel"; intermediateSize = 12; }; parallel = one // { tensorParallel = 4; }; }
      { model = { architecture = "QWenLMHeadModel"; intermediateSize = 16; }; parallel = one // { tensorParallel = 4; }; }
    ];
    expected = [ true true true true true true false ];
  };
  testConverterTakes = {
    expr = (converter "modelopt" (of "GPT2LMHeadModel" { })).family;
    expected = "gpt";
  };
  testConverterTakesTheRuntimes = {
    expr = !(fails (converter "tensorrt_llm" (of "FalconForCausalLM" { })));
    expected = true;
  };
  testConverterLeavesUnknownModelsToTheBuild = {
    expr = converter "enginix" (of "" { } // { model = { }; });
    expected = { };
  };
  testConverterUnknown = {
    expr = fails (converter "modelop" (of "GPT2LMHeadModel" { }));
    expected = true;
  };
  testConverterOfAnotherFamily = {
    expr = fails (converter "enginix" (of "ChatGLMForCausalLM" { }));
    expected = true;
  };
  testConverterRefusedByAll = {
    expr = fails (converter "modelopt" (of "Gemma3ForCausalLM" { }));
    expected = true;
  };
  testConverterRefusesQuantizedModels = {
    expr = fails (converter "modelopt" (of "GPT2LMHeadModel" { } // { quantization = "FP8"; }));
    expected = true;
  };
  testConverterRefusesStages = {
    expr = fails (converter "modelopt" (of "GPT2LMHeadModel" { pipelineParallel = 2; }));
    expected = true;
  };
  testConverterHasALimit = {
    expr = fails (converter "modelopt" (of "MptForCausalLM" { tensorParallel = 8; }));
    expected = true;
  };

  testGpuByItsName = {
    expr = (check.gpus.find "f" "h200").sm;
    expected = 90;
  };
  testGpuAsPeopleWriteIt = {
    expr = map (name: (check.gpus.find "f" name).name) [
      "RTX 4090"
      "NVIDIA GeForce RTX 4070 Ti"
      "rtx4080"
      "DGX Spark"
      "A100"
    ];
    expected = [
      "rtx-4090"
      "rtx-4070-ti"
      "rtx-4080"
      "gb10"
      "a100-40gb"
    ];
  };
  testGpuRefuses = {
    expr = fails (check.gpus.find "f" "h2000");
    expected = true;
  };
  testGpuBySmAndMemory = {
    expr =
      let
        target = check.engine.target "f" {
          sm = 89;
          memoryGB = 16;
          count = 2;
        };
      in
      {
        inherit (target) gpu count;
        inherit (check.gpus.find "f" target.gpu) sm memoryGB formats;
      };
    expected = {
      gpu = "sm89-16gb";
      count = 2;
      sm = 89;
      memoryGB = 16;
      inherit (check.gpus.find "f" "rtx-4090") formats;
    };
  };
  testGpuWithoutAName = {
    expr = check.gpus.unnamed "f" 120 12 false;
    expected = "sm120-12gb";
  };
  testGpuWithItsMemory = {
    expr = map (target: (check.engine.target "f" target).gpu) [
      {
        gpu = "a16";
        memoryGB = 16;
      }
      {
        gpu = "h200";
        memoryGB = 141;
      }
      {
        sm = 130;
        memoryGB = 64;
        unlisted = true;
      }
    ];
    expected = [
      "a16-16gb"
      "h200"
      "sm130-64gb-unlisted"
    ];
  };
  testGpuThatDoesNotExist = {
    expr = map (target: fails (builtins.deepSeq (check.engine.target "f" target) null)) [
      {
        sm = 95;
        memoryGB = 16;
      }
      {
        sm = 999;
        memoryGB = 16;
      }
      {
        gpu = "sm89-16gb";
        memoryGB = 16;
      }
      {
        gpu = "h200";
        driver = "banana";
      }
      {
        gpu = "h200";
        driver = "580.95.05";
      }
    ];
    expected = [
      true
      true
      true
      true
      false
    ];
  };
  testNameOfTwoMemories = {
    expr = map (name: check.gpus.ambiguity name) [
      "A100"
      "a100-80gb"
    ];
    expected = [
      "target \"A100\" was taken for a100-40gb; say a100-80gb for the other memory."
      null
    ];
  };
  # Nothing near another release is meant by it.
  testUnknownRuntime = {
    expr =
      map
        (
          wanted:
          let
            said = check.names.unknownRuntime wanted [ "trtllm-1.1.0" "trtllm-1.2.1" ];
            meant = builtins.match ".* Did you mean ([^?]*)[?].*" said;
          in
          [
            (if meant == null then null else builtins.head meant)
            (builtins.match ".*mkRuntime.*" said != null)
          ]
        )
        [ "1.2.1" "trtllm-1.5.0" "trtlm-1.2.1" ]
      ++ [ (check.names.unknownRuntime "edgellm-0.12.0" [ "edgellm-0.11.0" ]) ];
    expected = [
      [ "trtllm-1.2.1" true ]
      [ null true ]
      [ "trtllm-1.2.1" true ]
      "unknown runtime \"edgellm-0.12.0\". Did you mean edgellm-0.11.0? Known: edgellm-0.11.0."
    ];
  };
  testGpuOfAnotherSystem = {
    expr = map (name: builtins.length (check.kindSupport.otherSystem (check.gpus.find "f" name) "x86_64-linux")) [
      "gb200"
      "gb10"
      "h200"
      "sm121-128gb"
    ];
    expected = [
      1
      1
      0
      0
    ];
  };
  testKindsOfAGpu = {
    expr = map (name: check.kindSupport.running (check.gpus.find "f" name)) [
      "t4"
      "jetson-t5000"
      "gb200"
      "rtx-4090"
      "vr200"
    ];
    expected = [
      [ "reference" ]
      [
        "edgellm"
        "reference"
      ]
      [
        "tensorrt"
        "llmapi"
        "reference"
      ]
      [
        "tensorrt"
        "llmapi"
        "rtx"
        "reference"
      ]
      [
        "llmapi"
        "reference"
      ]
    ];
  };
  testKindIsExplained = {
    expr = check.kindSupport.explain "tensorrt" (check.gpus.find "f" "vr200") null;
    expected =
      "kind tensorrt runs on SM 80, 86, 89, 90, 100, 103, 120, 121; target \"vr200\" is SM 107. "
      + "Use kind \"llmapi\" or \"reference\", or another GPU.";
  };
  testKindIsRequired = {
    expr = map (version: fails (check.kindSupport.require "f" "llmapi" (check.gpus.find "f" "vr200") version)) [
      "1.3.0rc29"
      "1.4.0rc0"
    ];
    expected = [
      true
      false
    ];
  };
  testReleasesInOrder = {
    expr = map (version: check.kindSupport.isAtLeast version "1.3.0rc20") [
      "1.2.1"
      "1.3.0rc9"
      "1.3.0rc20"
      "1.3.0"
      "1.10.0rc1"
    ];
    expected = [
      false
      false
      true
      true
      true
    ];
  };
  testMemoryIsRequired = {
    expr =
      let
        facts = {
          layers = 1;
          heads = 1;
          kvHeads = 1;
          headSize = 1;
          hiddenSize = 1;
          intermediateSize = 1;
          vocabulary = 1;
          context = 1;
          dtype = "bfloat16";
          weightBytes = 1;
        };
        a16 = check.gpus.find "f" "a16";
      in
      [
        (fails (check.plan.requireMemory "f" facts a16))
        (fails (check.plan.requireMemory "f" { } a16))
        (check.plan.requireMemory "f" facts (check.gpus.find "f" "a16-16gb")).memory
      ];
    expected = [
      true
      false
      16000000000
    ];
  };
  testGpuIsNamedOnce = {
    expr = map (target: fails (builtins.deepSeq (check.engine.target "f" target) null)) [
      { }
      { sm = 89; }
      { memoryGB = 16; }
      {
        gpu = "rtx-4090";
        sm = 89;
        memoryGB = 24;
      }
      {
        sm = "89";
        memoryGB = 16;
      }
    ];
    expected = [
      true
      true
      true
      true
      true
    ];
  };
  testNvfp4OnBlackwell = {
    expr = check.target.quantization "e" "NVFP4" blackwell;
    expected = "NVFP4";
  };
  testNvfp4RefusedOnHopper = {
    expr = fails (check.target.quantization "e" "NVFP4" hopper);
    expected = true;
  };
  testFp8OnAda = {
    expr = check.target.quantization "e" "FP8" ada;
    expected = "FP8";
  };
  testUnquantizedAnywhere = {
    expr = check.target.quantization "e" null ada;
    expected = null;
  };

  # plan: whether an engine fits its GPU. Figures are those of a hand calculation; the same cases in Python and
  # hundreds more are in tests/python/plan/test_twin.py.
  testPlanMemoryOfGigabytes = {
    expr = check.plan.memoryOf { memoryGB = 24; };
    expected = 24000000000;
  };
  testPlanMemoryOfDriversReport = {
    expr = check.plan.memoryOf {
      memoryGB = 24;
      memoryMiB = 2;
    };
    expected = 2097152;
  };
  testPlanMemoryUnknown = {
    expr = check.plan.memoryOf { memoryGB = null; };
    expected = null;
  };
  testPlanWeightBytes = {
    expr = check.plan.weightBytes {
      "model-1.safetensors".size = 3;
      "model-2.safetensors".size = 4;
      "consolidated.safetensors".size = 7;
      "config.json".size = 100;
    };
    expected = 7;
  };
  testPlanKvCachePerToken = {
    # 2 (key, value) x 4 layers x 4 KV heads x 32 numbers x 2 bytes
    expr = (check.plan.plan planned smallGpu { }).kvToken;
    expected = 2048;
  };
  testPlanReplicatesKvHeads = {
    # 8 ranks share 4 KV heads: each holds one
    expr = (check.plan.plan planned smallGpu { tensorParallel = 8; }).kvToken;
    expected = 512;
  };
  testPlanSaysNothingWithoutFacts = {
    expr = check.plan.plan (builtins.removeAttrs planned [ "kvHeads" ]) smallGpu { };
    expected = null;
  };
  testPlanFits = {
    expr = (check.plan.fits "f" "tensorrt" planned smallGpu { }).fits;
    expected = true;
  };
  testPlanRefuses = {
    expr = fails (check.plan.fits "f" "tensorrt" planned (smallGpu // { memory = 1000000; }) { });
    expected = true;
  };

  testFlagsWords = {
    expr = flagsOf flagRows "2.10.0" {
      count = 2;
      rate = 0.5;
      on = false;
      bare = true;
      text = "x y";
      list = [
        "a"
        "b"
      ];
      late = 1;
    };
    expected = builtins.concatMap (word: [
      "--flag"
      word
    ]) [
      "bare"
      "count=2"
      "late=1"
      "list=a"
      "list=b"
      "on=false"
      "rate=0.5"
      "text=x y"
    ];
  };
  testFlagsRefuses = {
    expr = map (given: fails (flagsOf flagRows "2.9.0" given)) [
      { coumt = 1; }
      { count = -1; }
      { count = "1"; }
      { rate = "x"; }
      { on = "true"; }
      { bare = false; }
      { text = ""; }
      { text = [ "x" ]; }
      { list = [ "" ]; }
      { late = 1; }
      { mine = 1; }
      { shut = 1; }
    ];
    expected = builtins.genList (_: true) 12;
  };
}
