{
  description = "One model, pinned and served";

  inputs.enginix.url = "github:enginix/enginix";

  outputs = { enginix, ... }:
    let lib = enginix.legacyPackages.x86_64-linux; in {
      packages.x86_64-linux = rec {
        # nix run github:enginix/enginix#enginix-core -- lock Qwen/Qwen3-0.6B -o
        # qwen3-0.6b.lock.json writes it; in a git repository: git add qwen3-0.6b.lock.json
        model = lib.mkHfModel { lock = ./qwen3-0.6b.lock.json; };
        engine = lib.mkEngine { kind = "reference"; inherit model; };
        repo = lib.mkTritonRepo { inherit engine; maxBatchSize = 8; };
        default = lib.mkTritonServer { inherit repo; };
      };
    };
}
