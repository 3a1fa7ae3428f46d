# name -> entry -> { model, checkpoint, engine, triton-repo, triton-server }: the stages of one
# model, of an entry with `model` and the arguments of each stage beside the stage before it. Where
# Triton cannot serve the engine, `serve` stands in place of the last two, or nothing.
scope:
let
  # Showing or checking the flake evaluates every entry, so evaluation prints no warning here. The
  # warnings are in the entries' comments and in the build log; mkEngine prints them for users.
  quiet = scope.override { warn = _: value: value; };
  inherit (scope.lib.importJSON ../../python/enginix/data/runtime/runtimes.json) runtimes;
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
  kind = (import ../kinds).${entry.engine.kind};
  # By the entry alone, so that names of stages evaluate no engine.
  runtime = entry.engine.runtime or "trtllm-1.2.1";
  row = if builtins.isString runtime then runtimes.${runtime} or { } else runtime.row;
  hasTriton = kind.tritonRepo != null && (!kind.inImage || row.paths.triton or null != null);
  triton-repo = scope.mkTritonRepo ({ inherit engine; } // entry.repo);
  triton-server = scope.mkTritonServer ({ repo = triton-repo; } // entry.server);
in
{
  inherit
    model
    checkpoint
    engine
    ;
}
// (
  if hasTriton then
    { inherit triton-repo triton-server; }
  else if kind.inImage then
    { serve = scope.mkServe { inherit engine; }; }
  else
    { }
)
