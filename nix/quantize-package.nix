# The enginix command over the Python that has NVIDIA's quantizer: only what calibrates and quantizes, so that a change
# of anything else quantizes nothing again.
{
  lib,
  pkgs,
  enginix-core,
  ...
}@scope:
let
  package = ../python/enginix;
  python = scope.modelopt-python or pkgs.modelopt-python or (import ./nvidia-modelopt.nix scope);
  kept = [
    "__init__.py"
    "__main__.py"
    "cli.py"
    "commands/__init__.py"
    "commands/calibrate.py"
    "commands/quantize.py"
    "console.py"
    "data/__init__.py"
    "data/calibration.json"
    "data/calibration_default.jsonl"
    "data/quantization.json"
    "data/quantize.json"
    "errors.py"
    "files.py"
    "manifest.py"
    "model"
    "quantize"
    "tables.py"
  ];
  keep =
    path: type:
    let
      relative = lib.removePrefix "${toString package}/" (toString path);
    in
    baseNameOf path != "__pycache__"
    && builtins.any (
      k: relative == k || lib.hasPrefix "${k}/" relative || (type == "directory" && lib.hasPrefix "${relative}/" k)
    ) kept;
in
pkgs.stdenvNoCC.mkDerivation {
  name = "enginix-quantize-${enginix-core.version}";
  buildCommandPath = ./builders/enginix.sh;
  source = builtins.path {
    name = "enginix-quantize-source";
    path = package;
    filter = keep;
  };
  inherit python;
  inherit (pkgs) bash;
  preferLocalBuild = true;
  passthru = { inherit python; };
  meta.mainProgram = "enginix";
}
