# nix run .#demo, .#up, .#bench, .#<model>-triton-server, .#triton-server (the default), .#enginix
{
  lib,
  pkgs,
  python,
  catalogue,
  crane,
  enginix,
  gateway-python,
  modelopt-python,
  tritonserver,
  ...
}@scope:
self:
let
  # What this system has.
  packages = import ./packages.nix scope;
  app = program: description: {
    type = "app";
    inherit program;
    meta = { inherit description; };
  };
  server =
    model:
    app (lib.getExe catalogue.${model}.triton-server) "Triton Inference Server for ${model}";
  derivationOf = drv: builtins.unsafeDiscardOutputDependency drv.drvPath;
  demo = pkgs.stdenvNoCC.mkDerivation {
    name = "enginix-demo";
    buildCommandPath = ./builders/demo.sh;
    inherit (pkgs) bash;
    launcher = ./builders/launcher.sh;
    python3 = python;
    flake = self;
    # The stages of this flake: whatever Nix and package set evaluated them, the demo evaluates none
    # of them again.
    stages = lib.concatLines (
      map (stage: "${stage}=${derivationOf catalogue.tiny-qwen3.${stage}}") [
        "model"
        "checkpoint"
        "engine"
        "triton-repo"
        "triton-server"
      ]
    );
    passAsFile = [ "stages" ];
    meta.mainProgram = "demo";
  };
  # A command with the server and the libraries that its stages need beside its own.
  withServers =
    command:
    pkgs.stdenvNoCC.mkDerivation {
      name = "enginix-${command}";
      buildCommandPath = ./builders/with-servers.sh;
      inherit (pkgs) bash;
      launcher = ./builders/launcher.sh;
      inherit command enginix tritonserver;
      gatewayPython = gateway-python;
      quantizePython = modelopt-python;
      meta.mainProgram = command;
    };
  # `enginix pin` with the catalogue's repositories and what fetches images beside it.
  pin = pkgs.stdenvNoCC.mkDerivation {
    name = "enginix-pin";
    buildCommandPath = ./builders/pin.sh;
    inherit (pkgs) bash;
    launcher = ./builders/launcher.sh;
    # A package set may have none: then the caller's counts.
    crane = if (builtins.tryEval crane).success then crane else "";
    # Without PyTorch: what pins needs the Hub's client alone.
    enginix = import ./package.nix scope {
      name = "enginix-pin-command";
      folders = null;
      python = scope.core-python;
    };
    models = builtins.toJSON (
      builtins.mapAttrs (
        name: file:
        let
          inherit (import file scope) model engine;
          runs = builtins.elem engine.kind [ "tensorrt" "llmapi" ];
        in
        {
          inherit (model) repo;
          revision = if model.locked or true then null else model.revision;
          locked = model.locked or true;
          runtime = if runs then catalogue.${name}.engine.runtime else null;
        }
      ) (builtins.removeAttrs (import ./catalogue/entries.nix) [ "tiny-qwen3" ])
    );
    passAsFile = [ "models" ];
    meta.mainProgram = "pin";
  };
in
lib.mapAttrs' (model: _: lib.nameValuePair "${model}-triton-server" (server model)) (
  lib.filterAttrs (model: _: packages ? "${model}-triton-server") catalogue
)
// lib.optionalAttrs (packages ? tiny-qwen3-triton-server) {
  demo = app (lib.getExe demo) "A small model from a hub to an answer, through every stage";
  up = app (lib.getExe (withServers "up")) "From a model's name to an OpenAI endpoint";
  bench = app (lib.getExe (withServers "bench")) "The speed of an engine or an OpenAI endpoint";
}
// {
  enginix = app (lib.getExe packages.default) "The enginix command";
  pin = app (lib.getExe pin) "Pin a model and its runtime, for nix build .#NAME-engine";
}
// lib.optionalAttrs (packages ? triton-server) {
  triton-server = server "qwen3-32b-nvfp4";
  default = server "qwen3-32b-nvfp4";
}
