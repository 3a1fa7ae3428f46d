# <model>-{model,checkpoint,engine,triton-repo,triton-server} of every model of the catalogue, where they can be.
{
  lib,
  pkgs,
  catalogue,
  enginix,
  enginix-core,
  ...
}:
let
  # What is for other systems is left out, not offered and refused: by its meta, or by a part that throws.
  isHere =
    drv:
    let
      here = builtins.tryEval (builtins.elem pkgs.stdenvNoCC.hostPlatform.system drv.meta.platforms);
    in
    here.success && here.value;
  stages = model: lib.filterAttrs (_: isHere) catalogue.${model};
in
builtins.foldl' (all: model: all // lib.mapAttrs' (stage: lib.nameValuePair "${model}-${stage}") (stages model))
  {
    inherit enginix enginix-core;
    default = enginix;
    # What `nix run .#triton-server` has always meant: the server of the first model asked for.
    triton-server = catalogue.qwen3-32b-nvfp4.triton-server;
  }
  (builtins.attrNames catalogue)
