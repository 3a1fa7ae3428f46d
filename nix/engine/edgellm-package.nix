# The enginix command over the Python that has NVIDIA's exporter: only what exports, builds and serves this kind.
{
  lib,
  pkgs,
  enginix-core,
  ...
}@scope:
let
  package = ../../python/enginix;
  python = scope.edgellm-python or pkgs.edgellm-python or (import ../nvidia-edgellm.nix scope);
  kept = [
    "__init__.py"
    "__main__.py"
    "cli.py"
    "commands/__init__.py"
    "commands/edgellm_build.py"
    "commands/edgellm_export.py"
    "commands/edgellm_serve.py"
    "console.py"
    "data/__init__.py"
    "data/architectures.json"
    "data/edgellm.json"
    "data/gpus.json"
    "data/quantization.json"
    "edgellm"
    "engine/__init__.py"
    "engine/target.py"
    "errors.py"
    "files.py"
    "manifest.py"
    "model"
    "process.py"
    "runtime/__init__.py"
    "runtime/driver.py"
    "tables.py"
  ];
  keep =
    path: type:
    let
      relative = lib.removePrefix "${toString package}/" (toString path);
    in
    baseNameOf path != "__pycache__"
    && builtins.any (k: relative == k || lib.hasPrefix "${k}/" relative || (type == "directory" && lib.hasPrefix "${relative}/" k)) kept;
in
pkgs.stdenvNoCC.mkDerivation {
  name = "enginix-edgellm-${enginix-core.version}";
  buildCommandPath = ../builders/enginix.sh;
  source = builtins.path {
    name = "enginix-edgellm-source";
    path = package;
    filter = keep;
  };
  inherit python;
  inherit (pkgs) bash;
  preferLocalBuild = true;
  passthru = { inherit python; };
  meta.mainProgram = "enginix";
}
