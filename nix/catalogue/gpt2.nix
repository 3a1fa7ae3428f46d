# openai-community/gpt2: the commit is one that several public projects pin; the hashes of all its
# files were not looked for. The smallest of the families that rows of data convert.
scope: {
  model = import ./unpinned.nix scope {
    name = "gpt2";
    repo = "openai-community/gpt2";
    architecture = "GPT2LMHeadModel";
    revision = "607a30d783dfa663caf39e06633721c8d4cfcd7e";
    license = "mit";
  };
  engine.kind = "reference";
}
