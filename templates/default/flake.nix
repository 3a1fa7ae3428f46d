{
  description = "One model, pinned and served";

  inputs.enginix.url = "github:enginix/enginix";

  outputs =
    { enginix, ... }:
    let
      system = "x86_64-linux";
      lib = enginix.legacyPackages.${system};
    in
    {
      packages.${system} = rec {
        # Written by: nix run github:enginix/enginix#enginix -- lock Qwen/Qwen3-0.6B -o qwen3-0.6b.lock.json
        model = lib.mkHfModel { lock = ./qwen3-0.6b.lock.json; };
        engine = lib.mkEngine {
          kind = "reference";
          inherit model;
        };
        repo = lib.mkTritonRepo { inherit engine; };
        default = lib.mkTritonServer { inherit repo; };
      };
    };
}
