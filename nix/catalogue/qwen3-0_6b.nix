# Qwen/Qwen3-0.6B: the smallest model that people use. Commit, sizes and hashes as several public
# projects pin them; config.json was written again from its values and has the pinned hash.
# docs/reference/catalogue.md.
{ mkHfModel, ... }:
{
  model = mkHfModel {
    name = "qwen3-0_6b";
    lock = ./qwen3-0_6b.lock.json;
  };
  engine.kind = "reference";
}
