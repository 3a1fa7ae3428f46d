# nix run .#demo, .#<model>-triton-server, .#triton-server (the default), .#enginix
{
  lib,
  pkgs,
  catalogue,
  enginix,
  ...
}:
self:
let
  app = program: description: {
    type = "app";
    inherit program;
    meta = { inherit description; };
  };
  server =
    model:
    app (lib.getExe catalogue.${model}.triton-server) "Triton Inference Server for ${model}";
  demo = pkgs.stdenvNoCC.mkDerivation {
    name = "enginix-demo";
    buildCommandPath = ./builders/demo.sh;
    inherit (pkgs) bash python3;
    flake = self;
    meta.mainProgram = "demo";
  };
in
lib.mapAttrs' (model: _: lib.nameValuePair "${model}-triton-server" (server model)) catalogue
// {
  demo = app (lib.getExe demo) "A small model from a hub to an answer, through every stage";
  enginix = app (lib.getExe enginix) "The enginix command";
  triton-server = server "qwen3-32b-nvfp4";
  default = server "qwen3-32b-nvfp4";
}
