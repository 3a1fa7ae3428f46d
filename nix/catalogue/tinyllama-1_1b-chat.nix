# TinyLlama/TinyLlama-1.1B-Chat-v1.0. Commit, sizes and hashes as several public projects pin them,
# each file in at least two; config.json was written again from its values and has the pinned hash.
# docs/reference/catalogue.md.
{ mkHfModel, ... }:
{
  model = mkHfModel {
    name = "tinyllama-1_1b-chat";
    lock = ./tinyllama-1_1b-chat.lock.json;
  };
  engine.kind = "reference";
}
