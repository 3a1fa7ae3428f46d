# nvidia/Qwen3-32B-NVFP4: the model of the first engine that this project was asked for.
#
# The hash is that of a `git lfs clone` without .git, as published with the request. The commit that it
# belongs to was not published, and none is invented: mkHfModel would need one to fetch. A store or cache
# that holds the path already serves it; elsewhere the build says how to pin it.
{ pkgs, ... }:
{
  model = pkgs.stdenvNoCC.mkDerivation {
    name = "qwen3-32b-nvfp4-model";
    buildCommandPath = ../builders/unpinned-model.sh;
    outputHashMode = "recursive";
    outputHash = "sha256-Uekvo4NlzbrbZcKPSyzd7opvZDh+JOE55jrUbcsMu8Q=";
    repo = "nvidia/Qwen3-32B-NVFP4";
    preferLocalBuild = true;
    passthru = {
      repo = "nvidia/Qwen3-32B-NVFP4";
      revision = null;
      license = "apache-2.0";
      modelName = "qwen3-32b-nvfp4";
      model = {
        architecture = "Qwen3ForCausalLM";
      };
      architecture = "Qwen3ForCausalLM";
      quantization = "NVFP4";
    };
    meta.homepage = "https://huggingface.co/nvidia/Qwen3-32B-NVFP4";
  };
  checkpoint.dtype = "bfloat16";
  engine = {
    kind = "tensorrt";
    target = "rtx-pro-6000";
    runtime = "trtllm-1.2.1";
    limits = {
      maxBatchSize = 8;
      maxInputLen = 8192;
      maxSeqLen = 16384;
    };
  };
}
