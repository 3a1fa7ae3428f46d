# What an error proposes where TensorRT-LLM's PyTorch backend has no class for the model:
# data/models/pytorch_backend.json, as python/enginix/model/llmapi_advice.py reads it.
{ lib }:
let
  table = lib.importJSON ../../python/enginix/data/models/pytorch_backend.json;
  # Whether a version of TensorRT-LLM is later than the release of the classes: 1.3.0rc20 than 1.2.
  isLater =
    version:
    let
      release = builtins.head (builtins.match "([0-9]+[.][0-9]+).*" version);
    in
    builtins.compareVersions release table.release > 0;
  column = n: map (pair: builtins.elemAt pair n) table.proposals;
in
rec {
  # Whether the backend has the class.
  # has :: string|null -> bool
  has = architecture: architecture == null || builtins.elem architecture table.architectures;

  # The architecture, if a runtime may have its class: of later releases the classes are not known.
  # requireClass :: string -> string|null -> string|null -> string|null
  requireClass =
    function: architecture: version:
    if has architecture || version == null || isLater version then
      architecture
    else
      throw (
        "${function}: TensorRT-LLM's PyTorch backend has no class for ${architecture}, by its "
        + "source of release ${table.release}. Serve the model with transformers."
      );

  # The texts that propose the kind become others for an architecture that is not in the list. Older
  # locks do not have it: null changes nothing.
  # limit :: string|null -> string -> string
  limit =
    architecture: text:
    if has architecture then
      text
    else
      builtins.replaceStrings (column 0) (column 1) text;
}
