# <model>-{model,checkpoint,engine,triton-repo,triton-server} of every model of the catalogue, as
# far as this system has them: engines are gated, and servers served, by the environment with
# PyTorch.
{
  lib,
  availability,
  catalogue,
  enginix,
  enginix-core,
  ...
}:
let
  kinds = import ./kinds;
  stages =
    model:
    lib.filterAttrs (
      stage: _:
      stage == "model"
      || stage == "checkpoint"
      || availability.runtime
      && (stage != "triton-server" || servable model)
    ) catalogue.${model};
  withModel =
    all: model: all // lib.mapAttrs' (stage: lib.nameValuePair "${model}-${stage}") (stages model);
  # What runs in no image is served by the Triton that enginix brings; the others by their
  # runtime's.
  servable = model: availability.tritonserver || kinds.${catalogue.${model}.engine.kind}.inImage;
in
builtins.foldl' withModel
  (
    {
      inherit enginix-core;
      default = if availability.runtime then enginix else enginix-core;
    }
    // lib.optionalAttrs availability.runtime {
      inherit enginix;
      # What `nix run .#triton-server` has always meant: the server of the first model asked for.
      triton-server = catalogue.qwen3-32b-nvfp4.triton-server;
    }
  )
  (builtins.attrNames catalogue)
