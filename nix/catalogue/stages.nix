# name -> entry -> { model, checkpoint, engine, triton-repo, triton-server }: the stages of one
# model, of an entry with `model` and the arguments of each stage beside the stage before it.
scope:
let
  # Showing or checking the flake evaluates every entry, so evaluation prints no warning here. The
  # warnings are in the entries' comments and in the build log; mkEngine prints them for users.
  quiet = scope.override { warn = _: value: value; };
in
name: given:
let
  entry = {
    checkpoint = { };
    repo = { };
    server = { };
  }
  // given;
  inherit (entry) model;
  checkpoint = scope.mkCheckpoint ({ inherit model name; } // entry.checkpoint);
  engine = quiet.mkEngine (
    { inherit model name; }
    # Kind llmapi takes the model itself.
    // (if entry.engine.kind == "llmapi" then { } else { inherit checkpoint; })
    // entry.engine
  );
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
}
