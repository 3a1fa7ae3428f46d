# { model, options, name } -> derivation
#
# The checked ONNX export of a model: pure, on CPU, no network; the half of the pipeline that any
# machine caches.
{ lib, pkgs, ... }@scope:
let
  artefactMeta = import ../../artefact-meta.nix { inherit lib; };
  checks = import ./checks.nix scope;
  enginix = import ./package.nix scope;
  function = ''mkEngine { kind = "edgellm"; }'';
in
{
  model,
  options ? { },
  name ? checks.modelName function model,
}:
let
  facts = model.model or { };
  checked = builtins.deepSeq [
    (checks.architecture function (facts.architecture or model.architecture or null))
    (checks.described function facts)
    (checks.format function (model.quantization or null) null)
    (checks.kvCache function (model.quantization or null) (facts.kvCacheQuantization or null))
    (checks.files function (model.fileNames or null))
  ] (checks.options function "export" options);
in
pkgs.stdenvNoCC.mkDerivation {
  name = "${name}-edgellm-export";
  buildCommandPath = ../../builders/edgellm-export.sh;
  nativeBuildInputs = [ enginix ];
  inherit model;
  exportName = name;
  flags = lib.escapeShellArgs (checks.flags "export" checked);
  # A path left in a file would keep the model's weights beside their export for ever.
  allowedReferences = [ ];
  passthru = {
    inherit model options;
    modelName = name;
  };
  meta = artefactMeta model { description = "ONNX export of ${name} for TensorRT Edge-LLM"; };
}
