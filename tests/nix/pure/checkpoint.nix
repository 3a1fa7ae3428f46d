# Checkpoints: ranks, quantization, families, converters.
{ lib, check }:
let
  fails = import ../fails.nix;
  parallelism = check.checkpoint.parallelism "f";
  nodes = check.checkpoint.nodes "f";
  converter = check.checkpoint.converter "f" (lib.importJSON ../../../python/enginix/data/models/converters.json);
  family = check.checkpoint.family "f" (lib.importJSON ../../../python/enginix/data/models/family_rows.json);
  formats = lib.importJSON ../../../python/enginix/data/models/number_formats.json;
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
in
{
  testLlmapiIsProposedForItsClasses = {
    expr = map check.llmapiAdvice.has [
      "LlamaForCausalLM"
      "BloomForCausalLM"
      null
    ];
    expected = [
      true
      false
      true
    ];
  };
  testLlmapiProposalBecomesAnother = {
    expr = map (name: check.llmapiAdvice.limit name "serve the model with the llmapi kind") [
      "LlamaForCausalLM"
      "BloomForCausalLM"
    ];
    expected = [
      "serve the model with the llmapi kind"
      "serve the model with transformers: TensorRT-LLM's PyTorch backend has no class for it"
    ];
  };
  testLlmapiClassIsRequiredOfListedReleases = {
    expr = map (version: fails (check.llmapiAdvice.requireClass "f" "BloomForCausalLM" version)) [
      "1.2.1"
      "1.3.0rc20"
      null
    ];
    expected = [
      true
      false
      false
    ];
  };
  testLlmapiClassThatIsThereIsTaken = {
    expr = check.llmapiAdvice.requireClass "f" "LlamaForCausalLM" "1.2.1";
    expected = "LlamaForCausalLM";
  };
  testArchitecturesThatTheExecutorComputes = {
    expr = map check.checkpoint.isComputed [
      "LlamaForCausalLM"
      "DbrxForCausalLM"
      null
    ];
    expected = [
      true
      false
      true
    ];
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
}
