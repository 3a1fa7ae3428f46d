# nvidia/Phi-4-NVFP4: the name is that of the request; neither commit nor hashes were found in a
# public source. Phi-4 text models report the architecture Phi3ForCausalLM.
scope: {
  model = import ./unpinned.nix scope {
    name = "phi-4-nvfp4";
    repo = "nvidia/Phi-4-NVFP4";
    architecture = "Phi3ForCausalLM";
    quantization = "NVFP4";
  };
  engine = {
    kind = "tensorrt";
    target = "rtx-pro-6000";
    limits = {
      maxBatchSize = 8;
      maxSeqLen = 16384;
    };
  };
}
