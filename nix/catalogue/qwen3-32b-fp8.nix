# nvidia/Qwen3-32B-FP8: ModelOpt's FP8, which becomes an engine (Qwen/Qwen3-32B-FP8 is block FP8 and
# does not). The name is that of the request; neither commit nor hashes were found in a public
# source.
scope: {
  model = import ./unpinned.nix scope {
    name = "qwen3-32b-fp8";
    repo = "nvidia/Qwen3-32B-FP8";
    architecture = "Qwen3ForCausalLM";
    quantization = "FP8";
  };
  engine = {
    kind = "tensorrt";
    target = "h100";
    limits = {
      maxBatchSize = 8;
      maxSeqLen = 16384;
    };
  };
}
