# What an error proposes where TensorRT-LLM's PyTorch backend has no class for the model:
# data/models/pytorch_backend.json, as python/enginix/model/llmapi_advice.py reads it.
{ lib }:
let
  table = lib.importJSON ../../python/enginix/data/models/pytorch_backend.json;
  column = n: map (pair: builtins.elemAt pair n) table.proposals;
in
rec {
  # Whether the backend has the class.
  # has :: string|null -> bool
  has = architecture: architecture == null || builtins.elem architecture table.architectures;

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
