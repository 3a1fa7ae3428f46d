# mkTritonRepo :: { engine, … } -> derivation
#
# A Triton model repository: preprocessing, tensorrt_llm, postprocessing, ensemble; validated before it exists.
{
  lib,
  pkgs,
  check,
  enginix,
  ...
}:
let
  function = "mkTritonRepo";
  # Nix name -> the command's flag; defaults are the command's.
  options = {
    maxBatchSize = "--max-batch-size";
    maxQueueDelayMicroseconds = "--max-queue-delay-microseconds";
    maxQueueSize = "--max-queue-size";
    preprocessingInstances = "--preprocessing-instances";
    postprocessingInstances = "--postprocessing-instances";
  };
  build =
    {
      # mkEngine's output.
      engine,
      name ? engine.modelName,
      ...
    }@args:
    let
      given = builtins.removeAttrs args [
        "engine"
        "name"
      ];
      flags = builtins.concatLists (
        lib.mapAttrsToList (option: value: [
          options.${option}
          (check.arguments.atLeast function option 0 value)
        ]) given
      );
    in
    pkgs.stdenvNoCC.mkDerivation {
      name = "${name}-triton-repo";
      buildCommandPath = ./builders/triton-repo.sh;
      nativeBuildInputs = [ enginix ];
      inherit engine;
      flags = lib.escapeShellArgs (builtins.deepSeq flags flags);
      passthru = {
        inherit engine;
        inherit (engine) kind runtime;
        modelName = name;
      };
      meta.description = "Triton model repository of ${name}";
    };
in
args: build (check.arguments.only function ([ "engine" "name" ] ++ builtins.attrNames options) args)
