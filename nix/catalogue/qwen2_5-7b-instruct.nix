# Qwen/Qwen2.5-7B-Instruct. Commit, sizes and hashes as several public projects pin them; they add
# up to the total that a further one published, and config.json was written again from its values
# and has the pinned hash. docs/reference/catalogue.md.
{ mkHfModel, ... }:
{
  model = mkHfModel {
    name = "qwen2_5-7b-instruct";
    lock = ./qwen2_5-7b-instruct.lock.json;
  };
  engine = {
    kind = "tensorrt";
    target = "l40s";
    limits = {
      maxBatchSize = 32;
      maxSeqLen = 32768;
    };
  };
}
