# Ready models: name -> { model, checkpoint, engine, triton-repo, triton-server }.
#
# One file each, a function of the scope. The files are listed, not discovered, and an entry is
# evaluated only when it is asked for.
scope:
let
  # Showing or checking the flake evaluates every entry, so evaluation prints no warning here. The
  # warnings are in the entries' comments and in the build log; mkEngine prints them for users.
  quiet = scope.override { warn = _: value: value; };
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
      engine = quiet.mkEngine ({ inherit model checkpoint name; } // entry.engine);
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
  qwen3-0_6b = ./qwen3-0_6b.nix;
  qwen3-8b = ./qwen3-8b.nix;
  qwen3-32b-fp8 = ./qwen3-32b-fp8.nix;
  qwen3-32b-nvfp4 = ./qwen3-32b-nvfp4.nix;
  qwen2_5-7b-instruct = ./qwen2_5-7b-instruct.nix;
  llama-3_1-8b-instruct = ./llama-3_1-8b-instruct.nix;
  llama-3_1-8b-fp8 = ./llama-3_1-8b-fp8.nix;
  phi-4-nvfp4 = ./phi-4-nvfp4.nix;
  tinyllama-1_1b-chat = ./tinyllama-1_1b-chat.nix;
}
