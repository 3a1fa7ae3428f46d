# meta-llama/Llama-3.1-8B-Instruct: the commit is one that public code pins; the hashes of all its
# files were not found.
scope: {
  model = import ./unpinned.nix scope {
    name = "llama-3_1-8b-instruct";
    repo = "meta-llama/Llama-3.1-8B-Instruct";
    architecture = "LlamaForCausalLM";
    revision = "0e9e39f249a16976918f6564b8830bc894c89659";
    gated = true;
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
