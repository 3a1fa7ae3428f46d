# mkReferenceAnswers :: { model, … } -> derivation
#
# The answers of a model to all questions of the gates: computed once, and shared by its engines of
# every format, target and kind. The directory is that of `enginix reference`.
{
  lib,
  pkgs,
  check,
  environment,
  ...
}@scope:
let
  artefactMeta = import ./artefact-meta.nix { inherit lib; };
  gpuAccess = import ./gpu-access.nix { inherit lib check; };
  commandWords = import ./command-words.nix { inherit lib; };
  function = "mkReferenceAnswers";
  enginix = import ./answers-package.nix scope;
  build =
    {
      # The model before quantization: mkHfModel's output.
      model,
      # Questions in place of the pinned ones: JSONL, { "question": …, "answer": … } a line; a path,
      # or a derivation.
      questions ? null,
      # "cpu", "cuda". Both compute in float32; the questions are some thousand tokens.
      device ? "cpu",
      # How a build with device = "cuda" reaches the GPU: "features" in Nix's sandbox, "relaxed"
      # outside of it.
      isolation ? "features",
      name ? model.modelName or "model",
    }:
    let
      onCuda =
        check.arguments.oneOf function "device" [
          "cpu"
          "cuda"
        ] device == "cuda";
      access = gpuAccess function isolation [ "cuda" ];
      flags = commandWords { inherit device questions; };
      checked =
        if (model.quantization or null) != null && model ? original then
          throw (
            "${function}: ${name} is quantized (${model.quantization}), and would be compared with "
            + "itself; pass the model that it was quantized from: its attribute `original`."
          )
        else if (model.quantization or null) != null then
          throw (
            "${function}: ${name} is quantized (${model.quantization}); a reference is the model "
            + "before quantization: pass that one, locked like any other."
          )
        else
          builtins.deepSeq [
            onCuda
            access
            flags
          ] flags;
    in
    pkgs.stdenvNoCC.mkDerivation (
      {
        name = "${name}-answers";
        buildCommandPath = ./builders/reference-answers.sh;
        nativeBuildInputs = [ enginix ];
        inherit model environment;
        flags = lib.escapeShellArgs checked;
        # Token ids and numbers: judging by them needs no weights.
        allowedReferences = [ ];
        passthru = {
          inherit model questions;
          artefact = "answers";
          modelName = name;
        };
        meta = artefactMeta model { description = "Reference answers of ${name}"; };
      }
      // lib.optionalAttrs onCuda access
    );
in
check.arguments.call function build
