# Ready models: name -> { model, checkpoint, engine, triton-repo, triton-server }.
#
# One file each, a function of the scope. The files are listed, not discovered, and an entry is evaluated
# only when it is asked for.
scope:
let
  stages =
    name: file:
    let
      # `model` and the arguments of each stage beside the stage before it.
      entry = {
        checkpoint = { };
        repo = { };
        server = { };
      }
      // import file scope;
      inherit (entry) model;
      checkpoint = scope.mkCheckpoint ({ inherit model name; } // entry.checkpoint);
      engine = scope.mkEngine ({ inherit model checkpoint name; } // entry.engine);
      triton-repo = scope.mkTritonRepo ({ inherit engine; } // entry.repo);
      triton-server = scope.mkTritonServer ({ repo = triton-repo; } // entry.server);
    in
    {
      inherit
        model
        checkpoint
        engine
        triton-repo
        triton-server
        ;
    };
in
builtins.mapAttrs stages {
  tiny-qwen3 = ./tiny-qwen3.nix;
  qwen3-32b-nvfp4 = ./qwen3-32b-nvfp4.nix;
}
