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
      # Where the reference executor runs: "cpu", "cuda", "cuda:<n>".
      device ? "cpu",
      ...
    }@args:
    let
      given = builtins.removeAttrs args [
        "engine"
        "name"
        "device"
      ];
      flags = [
        "--device"
        device
      ]
      ++ builtins.concatLists (
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
        inherit engine device;
        inherit (engine) kind runtime;
        modelName = name;
      };
      meta.description = "Triton model repository of ${name}";
    };
in
args: build (check.arguments.only function ([ "engine" "name" "device" ] ++ builtins.attrNames options) args)
