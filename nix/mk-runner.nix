# mkRunner :: { model | checkpoint, … } -> derivation
#
# A command that builds the engine at first run, for the GPU that it finds, into the user's cache,
# and serves it. Nix builds only the checkpoint: for machines whose Nix has no GPU.
{
  lib,
  pkgs,
  check,
  mkCheckpoint,
  mkRuntime,
  ...
}:
let
  artefactMeta = import ./artefact-meta.nix { inherit lib; };
  commandWords = import ./command-words.nix { inherit lib; };
  function = "mkRunner";
  build =
    {
      # mkHfModel's output.
      model ? checkpoint.model,
      checkpoint ? mkCheckpoint { inherit model; },
      # A GPU of data/machine/gpus.json; null takes the one that is there.
      target ? null,
      runtime ? "trtllm-1.2.1",
      limits ? { },
      profile ? null,
      plugins ? { },
      host ? "127.0.0.1",
      port ? 8000,
      name ? model.modelName,
    }:
    let
      id = check.runtime.idOf function runtime;
      stack = check.runtime.packageOf function mkRuntime runtime;
      profileSettings = check.options.profile function profile;
      facts = model.model or { };
      named = facts.architecture or null;
      targetName = if target == null then null else (check.engine.target function target).gpu;
      rows = check.runtime.rows runtime;
      row = check.engine.runtime function rows "tensorrt" {
        inherit limits target;
        architecture = named;
      } id;
      # Without a target the GPU is unknown: the profile is resolved for it on the machine, before
      # the build.
      resolved =
        if target == null then
          {
            options = check.options.valid function id plugins;
            inherit profile;
          }
        else
          let
            gpu = check.gpus.find function targetName;
          in
          {
            options = check.options.resolve function id {
              quantization = check.target.quantization name named (model.quantization or null) gpu;
              kvCache = check.target.kvCache name named (facts.kvCacheQuantization or null) gpu;
              architecture = named;
              eagleLayers = facts.eagleLayers or null;
              inherit (gpu) sm;
              inherit (checkpoint.parallel) tensorParallel;
            } profileSettings.options plugins;
            profile = null;
          };
      request = {
        inherit name;
        target = targetName;
        kind = "tensorrt";
        runtime = check.runtime.spec runtime;
        limits = check.limits.resolve function facts profileSettings.limits limits;
        inherit (resolved) options profile;
        named = builtins.attrNames plugins;
      };
      flags = commandWords {
        inherit host;
        port = check.arguments.between function "port" 0 65535 port;
      };
    in
    builtins.deepSeq [ row.id request flags ] (
      pkgs.stdenvNoCC.mkDerivation {
        name = "${name}-runner";
        buildCommandPath = ./builders/engine-serve.sh;
        program = "${name}-runner";
        inherit (stack) command pinFile;
        rootfs = stack.rootfsFor model;
        driver = if stack.driver == null then "" else stack.driver;
        requestFile = pkgs.writeText "${name}-request.json" (builtins.toJSON request);
        arguments = "--checkpoint ${checkpoint} --model ${model} ${lib.escapeShellArgs flags}";
        inherit (pkgs) bash;
        launcher = ./builders/launcher.sh;
        preferLocalBuild = true;
        passthru = {
          inherit
            model
            checkpoint
            request
            host
            ;
          kind = "tensorrt";
          # Built at first run, on the machine that serves it.
          engine = null;
          modelName = name;
          runtime = id;
          httpPort = port;
        };
        meta = artefactMeta (model // { runtimePackage = stack; }) {
          description = "Builds the engine of ${name} at first run and serves it";
          mainProgram = "${name}-runner";
        };
      }
    );
in
args:
if builtins.isAttrs args && !(args ? model || args ? checkpoint) then
  throw "${function}: pass model (from mkHfModel) or checkpoint (from mkCheckpoint)."
else
  check.arguments.call function build args
