# Targets: GPUs by their names, kinds and formats that run on one, releases.
{ lib, check }:
let
  fails = import ../fails.nix;
in
{
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
}
