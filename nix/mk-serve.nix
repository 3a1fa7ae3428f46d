# mkServe :: { engine, … } -> derivation
#
# trtllm-serve (OpenAI interface) around an engine of kind tensorrt or llmapi, inside its runtime;
# refused at start where the engine does not fit the GPU.
{
  lib,
  pkgs,
  check,
  ...
}:
let
  artefactMeta = import ./artefact-meta.nix { inherit lib; };
  commandWords = import ./command-words.nix { inherit lib; };
  function = "mkServe";
  kinds = import ./kinds;
  served = builtins.filter (k: kinds.${k}.server == "trtllm-serve") (builtins.attrNames kinds);
  build =
    {
      # mkEngine's output.
      engine,
      # Address and port of the OpenAI interface.
      host ? "127.0.0.1",
      port ? 8000,
      # Share of the free GPU memory that the KV cache takes, as text: "0.9"; null leaves
      # TensorRT-LLM's.
      kvCacheFraction ? null,
      name ? engine.modelName,
    }:
    let
      inherit (check.arguments.output function "engine" "mkEngine" engine) kind;
      servedKind = check.arguments.oneOf function "engine.kind" served kind;
      flags = commandWords {
        inherit host;
        port = check.arguments.between function "port" 0 65535 port;
        kv-cache-fraction = kvCacheFraction;
      };
      stack = engine.runtimePackage;
    in
    builtins.deepSeq [ servedKind flags ] (
      pkgs.stdenvNoCC.mkDerivation {
        name = "${name}-serve";
        buildCommandPath = ./builders/engine-serve.sh;
        program = "${name}-serve";
        inherit (stack) command pinFile;
        rootfs = stack.rootfsFor engine.model;
        driver = if stack.driver == null then "" else stack.driver;
        arguments = "${engine} ${lib.escapeShellArgs flags}";
        inherit (pkgs) bash;
        launcher = ./builders/launcher.sh;
        preferLocalBuild = true;
        passthru = {
          inherit engine kind host;
          inherit (engine) runtime;
          modelName = name;
          httpPort = port;
        };
        meta = artefactMeta engine {
          description = "trtllm-serve for ${name}";
          mainProgram = "${name}-serve";
        };
      }
    );
in
args:
# An engine may bring its own server, with its own arguments.
if args ? engine.serve then
  args.engine.serve (removeAttrs args [ "engine" ])
else
  check.arguments.call function build args
