# mkCalibration :: { tokenizer, … } -> derivation
#
# Text as one hashed file of token ids (calibration.safetensors), which mkQuantized calibrates with;
# pure, on CPU.
{
  lib,
  pkgs,
  check,
  environment,
  ...
}@scope:
let
  artefactMeta = import ./artefact-meta.nix { inherit lib; };
  commandWords = import ./command-words.nix { inherit lib; };
  function = "mkCalibration";
  enginix = import ./quantize-package.nix scope;
  table = lib.importJSON ../python/enginix/data/quantization/quantize.json;
  build =
    {
      # mkHfModel's output: the model that the tokenizer belongs to. For a locked model, no weights
      # are fetched.
      tokenizer,
      # Text (.txt), JSONL (.jsonl), or a directory of them: a path, or a derivation such as
      # mkHfDataset's output, whose repository and commit the manifest then names. null takes the
      # text that ships with enginix.
      text ? null,
      # Field of a JSONL line: a string, or a list of chat messages.
      field ? "text",
      # Rows, and tokens a row. size = null takes all rows of the text, at most 256.
      size ? null,
      sequenceLength ? 512,
      # Seed of the order in which documents are drawn.
      seed ? 1234,
      name ? tokenizer.modelName or "model",
    }:
    let
      context = tokenizer.model.context or null;
      atLeast = check.arguments.atLeast function;
      flags = commandWords {
        inherit field text;
        sequence-length = atLeast "sequenceLength" 1 sequenceLength;
        seed = atLeast "seed" 0 seed;
        size = if size == null then null else atLeast "size" 1 size;
      };
      checked =
        builtins.deepSeq flags (
          if context != null && sequenceLength > context then
            throw (
              "${function}: sequenceLength = ${toString sequenceLength}, but the model's context "
              + "is ${toString context}. Take sequenceLength = ${toString context}."
            )
          else
            flags
        );
      # path, newline, store path, newline, …; nothing where the model is one directory.
      files = lib.filterAttrs (path: _: builtins.elem path table.tokenizerFiles) (
        tokenizer.files or { }
      );
      links = lib.concatLines (
        builtins.concatLists (
          lib.mapAttrsToList (path: file: [
            path
            "${file}"
          ]) files
        )
      );
    in
    pkgs.stdenvNoCC.mkDerivation {
      name = "${name}-calibration";
      buildCommandPath = ./builders/calibration.sh;
      nativeBuildInputs = [ enginix ];
      inherit environment links;
      tokenizer = if files == { } then "${tokenizer}" else "";
      passAsFile = [ "links" ];
      flags = lib.escapeShellArgs checked;
      # Token ids: nothing of the model, nothing of the text's path.
      allowedReferences = [ ];
      passthru = {
        inherit
          tokenizer
          size
          sequenceLength
          seed
          ;
      };
      meta = artefactMeta { } { description = "Calibration data for ${name}"; };
    };
in
check.arguments.call function build
