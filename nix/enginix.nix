# The enginix command over the Python libraries of one group of stages.
#
# `core` carries only what locks, fetches and converts: a change to serving code must not convert a
# model again, and the conversion path stays free of torch. The others carry every command; `runtime`
# has the libraries of most.
{ pkgs, lib, ... }@scope:
flavour:
let
  version = builtins.head (
    builtins.match ".*__version__ = \"([^\"]+)\".*" (
      builtins.readFile ../python/enginix/__init__.py
    )
  );

  core = [
    "checkpoint"
    "cli/conversion"
    "data/conversion"
    "data/memory_plan"
    "data/models"
    "hub"
    "model"
  ];
in
import ./package.nix scope {
  name = "enginix-${flavour}-${version}";
  folders = if flavour == "core" then core else null;
  python = scope."${flavour}-python";
  attributes.nativeBuildInputs = [ pkgs.stdenv.cc ]; # for the casts of the converter
  passthru = { inherit version; };
  meta = {
    description = "Hugging Face model in, served TensorRT-LLM deployment out";
    license = lib.licenses.asl20;
    platforms = import ./systems.nix;
  };
}
