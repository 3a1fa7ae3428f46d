# openai-community/gpt2, the smallest of the families that rows of data convert. Commit, sizes and
# hashes as several public projects pin them, each file in at least two; config.json was written
# again from its values and has the pinned hash. docs/reference/catalogue.md.
{ mkHfModel, ... }:
{
  model = mkHfModel {
    name = "gpt2";
    lock = ./gpt2.lock.json;
  };
  engine.kind = "reference";
}
