# <model>-{model,checkpoint,engine,triton-repo,triton-server} of every model of the catalogue.
{
  lib,
  catalogue,
  enginix,
  enginix-core,
  ...
}:
builtins.foldl' (all: model: all // lib.mapAttrs' (stage: lib.nameValuePair "${model}-${stage}") catalogue.${model})
  {
    inherit enginix enginix-core;
    default = enginix;
    # What `nix run .#triton-server` has always meant: the server of the first model asked for.
    triton-server = catalogue.qwen3-32b-nvfp4.triton-server;
  }
  (builtins.attrNames catalogue)
