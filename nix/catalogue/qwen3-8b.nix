# Qwen/Qwen3-8B: the commit is one that public code pins; the hashes of all its files were not
# found.
scope: {
  model = import ./unpinned.nix scope {
    name = "qwen3-8b";
    repo = "Qwen/Qwen3-8B";
    architecture = "Qwen3ForCausalLM";
    revision = "b968826d9c46dd6066d109eabc6255188de91218";
    license = "apache-2.0";
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
