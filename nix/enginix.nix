# The enginix command over the Python libraries of one group of stages.
#
# `core` carries only what locks, fetches and converts: a change to serving code must not convert a
# model again, and the conversion path stays free of torch. `runtime` carries everything.
{ pkgs, lib, ... }@scope:
flavour:
let
  package = ../python/enginix;

  version = builtins.head (
    builtins.match ".*__version__ = \"([^\"]+)\".*" (builtins.readFile (package + "/__init__.py"))
  );

  # What `core` is made of, beside the modules at the top.
  core = [
    "checkpoint"
    "commands/__init__.py"
    "commands/convert.py"
    "commands/fetch.py"
    "commands/fetch_file.py"
    "commands/fetch_tree.py"
    "commands/lock.py"
    "commands/verify_checkpoint.py"
    "data/__init__.py"
    "data/architectures.json"
    "data/converters.json"
    "data/formats.json"
    "data/lock.json"
    "data/quantization.json"
    "hub"
    "model"
    "py.typed"
  ]
  ++ builtins.filter (lib.hasSuffix ".py") (builtins.attrNames (builtins.readDir package));
in
import ./package.nix scope {
  name = "enginix-${flavour}-${version}";
  kept = if flavour == "core" then core else null;
  python = scope."${flavour}-python";
  attributes.nativeBuildInputs = [ pkgs.stdenv.cc ]; # for the casts of the converter
  passthru = { inherit version; };
  meta = {
    description = "Hugging Face model in, served TensorRT-LLM deployment out";
    license = lib.licenses.asl20;
    platforms = import ./systems.nix;
  };
}
