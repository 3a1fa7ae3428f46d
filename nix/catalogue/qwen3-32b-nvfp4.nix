# nvidia/Qwen3-32B-NVFP4: the model of the first engine that this project was asked for.
#
# The hash is that of a `git lfs clone` without .git, as published with the request. The commit that
# it belongs to was not published. Public code pins 16426c6eb87be9e27c14cc9fb318f9c7a5f8588c of this
# repository; whether the hash is that commit's is not known, so the two are not put together. A
# store or cache that holds the path already serves it; elsewhere the build says how to pin it.
scope: {
  model = import ./unpinned.nix scope {
    name = "qwen3-32b-nvfp4";
    repo = "nvidia/Qwen3-32B-NVFP4";
    revision = "16426c6eb87be9e27c14cc9fb318f9c7a5f8588c";
    hash = "sha256-Uekvo4NlzbrbZcKPSyzd7opvZDh+JOE55jrUbcsMu8Q=";
    architecture = "Qwen3ForCausalLM";
    quantization = "NVFP4";
    license = "apache-2.0";
    note =
      "  Its engine needs a Blackwell GPU, and NVIDIA's runtime trtllm-1.2.1, "
      + "pinned by `enginix runtime pin`.";
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
