# Number formats, KV caches and architectures against GPUs. Each check is shown accepting and refusing.
{ lib, check }:
let
  fails = import ../fails.nix;
  read = name: lib.importJSON (../../../python/enginix/data + "/${name}.json");
  support = read "runtime/engine_support";
  formats = read "models/number_formats";
  inherit (read "machine/gpus") gpus;
  gpu = name: gpus.${name} // { inherit name; };
  accepted = algorithm: name: !fails (check.target.quantization "e" null algorithm (gpu name));
  facts = {
    quantization = null;
    kvCache = null;
    sm = 90;
    architecture = "LlamaForCausalLM";
    engineClass = "LLaMAForCausalLM";
    tensorParallel = 1;
  };

  # The table again, by hand, for every GPU.
  rule =
    algorithm: sm:
    # No code for Turing and older, Jetson, and Rubin.
    if !builtins.elem sm [ 80 86 89 90 100 103 120 121 ] then
      false
    else if builtins.elem algorithm [ "FP8" ] then
      sm >= 89
    else if algorithm == "NVFP4" then
      sm >= 100
    else if builtins.elem algorithm [ "W8A16" "W4A16" "W4A16_AWQ" "W4A16_GPTQ" "W8A16_GPTQ" "W8A8_SQ_PER_CHANNEL" ] then
      sm >= 80 && !(sm >= 100 && sm < 120)
    else
      false;
  cells = builtins.concatMap (
    algorithm: map (name: { inherit algorithm name; }) (builtins.attrNames gpus)
  ) [ "FP8" "NVFP4" "W8A16" "W4A16" "W4A16_AWQ" "W4A16_GPTQ" "W8A16_GPTQ" "W8A8_SQ_PER_CHANNEL" "FP8_BLOCK_SCALES" ];
in
{
  testEveryCellAsTheRuleSays = {
    expr = builtins.filter (c: accepted c.algorithm c.name != rule c.algorithm gpus.${c.name}.sm) cells;
    expected = [ ];
  };
  testEveryRowHasSources = {
    expr = builtins.filter (
      row: row.sources == [ ] || !builtins.all (s: (support.sources // formats.sources) ? ${s}) row.sources
    ) (
      builtins.attrValues formats.algorithms
      ++ builtins.attrValues formats.kvCache
      ++ support.warnings
    );
    expected = [ ];
  };
  # gpus.json says what a part computes with, number_formats.json from which SM on: one truth.
  testFormatsOfGpusAgreeWithTheSms = {
    expr = builtins.concatMap (
      name:
      let
        row = gpus.${name};
        has = algorithm: builtins.all (f: builtins.elem f row.formats) algorithm.needs;
        enough = algorithm: algorithm.minSm == null || row.sm >= algorithm.minSm;
      in
      builtins.filter (a: has formats.algorithms.${a} != enough formats.algorithms.${a}) (
        builtins.filter (a: formats.algorithms.${a}.needs != [ ]) (builtins.filter (a: formats.algorithms.${a}.engine) (builtins.attrNames formats.algorithms))
      )
      ++ builtins.filter (f: !(formats.gpuFormats ? ${f})) row.formats
    ) (builtins.attrNames gpus);
    expected = [ ];
  };
  testFormatsHaveSourcesAndEveryPartIsThere = {
    expr = [
      (builtins.attrNames (builtins.listToAttrs (map (g: lib.nameValuePair g.part null) (builtins.attrValues gpus))))
      (builtins.length (builtins.attrNames (read "machine/gpus").formatSources) > 0)
      (builtins.filter (g: g.formats == [ ]) (builtins.attrValues gpus))
    ];
    expected = [
      [ "data-centre" "geforce" "grace" "jetson" "workstation" ]
      true
      [ ]
    ];
  };
  testComputesAccepts = {
    expr = map (f: check.target.computes "e" f (gpu "h200")) [ null "FP8" "FP8_BLOCK_SCALES" "W4A16_AWQ" "unheard of" ];
    expected = [ null "FP8" "FP8_BLOCK_SCALES" "W4A16_AWQ" "unheard of" ];
  };
  testComputesRefuses = {
    expr = map fails [
      (check.target.computes "e" "NVFP4" (gpu "a100-80gb"))
      (check.target.computes "e" "FP8" (gpu "a100-80gb"))
      # By Marlin kernels (check.target.fallback).
      (check.target.computes "e" "NVFP4" (gpu "h200"))
    ];
    expected = [ true true false ];
  };
  # A format that a part lacks is refused, whatever its SM says.
  testFormatThatTheGpuLacks = {
    expr = map (formats: fails (check.target.quantization "e" null "FP8" { name = "x"; sm = 90; inherit formats; })) [
      [ "BF16" "FP8" ]
      [ "BF16" "INT8" ]
    ];
    expected = [ false true ];
  };
  testBlockFp8Never = {
    expr = map (accepted "FP8_BLOCK_SCALES") [ "h200" "b200" "rtx-pro-6000" ];
    expected = [ false false false ];
  };
  testUnknownQuantization = {
    expr = fails (check.target.quantizationBy { architecture = null; format = f: f; artefacts = "Models"; } "e" "FP9" (gpu "h200"));
    expected = true;
  };
  testEnginesNeedAmpere = {
    expr = fails (check.target.quantization "e" null null { name = "t4"; sm = 75; });
    expected = true;
  };
  testKvCacheAccepts = {
    expr = map (f: check.target.kvCache "e" null f (gpu "h200")) [ null "FP8" "INT8" ];
    expected = [ null "FP8" "INT8" ];
  };
  testInt8KvCacheRefusedOnBlackwell = {
    expr = fails (check.target.kvCache "e" null "INT8" (gpu "b200"));
    expected = true;
  };
  testNvfp4KvCacheRefused = {
    expr = fails (check.target.kvCache "e" null "NVFP4" (gpu "b200"));
    expected = true;
  };
  testArchitectureOfTheEnginePath = {
    expr = map (check.target.architecture "e") [ null "Qwen3ForCausalLM" ];
    expected = [ null "Qwen3ForCausalLM" ];
  };
  testArchitectureOfPytorchAlone = {
    expr = fails (check.target.architecture "e" "GptOssForCausalLM");
    expected = true;
  };
  testEngineClass = {
    expr = map check.target.engineClass [ null "MistralForCausalLM" "X" ];
    expected = [ null "LLaMAForCausalLM" null ];
  };
  testWarningsOfUntestedGpus = {
    expr = map (sm: builtins.length (check.target.warnings (facts // { inherit sm; }))) [ 90 100 103 120 ];
    expected = [ 0 0 1 1 ];
  };
  testWarningsOfQwen3Fp8 = {
    expr = builtins.length (
      check.target.warnings (facts // { architecture = "Qwen3ForCausalLM"; quantization = "FP8"; kvCache = "FP8"; })
    );
    expected = 2;
  };
  testNvfp4OnBlackwell = {
    expr = check.target.quantization "e" null "NVFP4" (gpu "b200");
    expected = "NVFP4";
  };
  testNvfp4RefusedOnHopper = {
    expr = fails (check.target.quantization "e" null "NVFP4" (gpu "h200"));
    expected = true;
  };
  testFp8OnAda = {
    expr = check.target.quantization "e" null "FP8" (gpu "l40s");
    expected = "FP8";
  };
  testUnquantizedAnywhere = {
    expr = check.target.quantization "e" null null (gpu "l40s");
    expected = null;
  };
  testEngineClasses = {
    expr = map check.target.hasEngine [
      "LlamaForCausalLM"
      "DeepseekV2ForCausalLM"
      "NovelForCausalLM"
    ];
    expected = [
      true
      false
      false
    ];
  };
}
