# nvidia/Llama-3.1-8B-Instruct-FP8: the request calls it nvidia/Llama-3.1-8B-FP8; NVIDIA's own
# documents (TensorRT-LLM, quantization) name it so. Neither commit nor hashes were found in a
# public source.
scope: {
  model = import ./unpinned.nix scope {
    name = "llama-3_1-8b-fp8";
    repo = "nvidia/Llama-3.1-8B-Instruct-FP8";
    architecture = "LlamaForCausalLM";
    quantization = "FP8";
  };
  engine = {
    kind = "tensorrt";
    target = "l40s";
    limits = {
      maxBatchSize = 8;
      maxSeqLen = 16384;
    };
  };
}
