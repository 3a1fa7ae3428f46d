# engine -> { host, port, options, name } -> derivation
#
# tensorrt-edgellm-serve around an engine that is built: loopback, the API key from a file, nothing
# built at start.
{
  lib,
  pkgs,
  check,
  ...
}@scope:
let
  artefactMeta = import ../../artefact-meta.nix { inherit lib; };
  commandWords = import ../../command-words.nix { inherit lib; };
  function = "mkServe";
  checks = import ./checks.nix scope;
  enginix = import ./package.nix scope;
in
engine:
{
  # Address; any other than loopback needs an API key.
  host ? "127.0.0.1",
  port ? 8000,
  # A file outside of the store, given at start as --api-key-file or as the systemd credential
  # `api-key`.
  apiKeyFile ? null,
  # Options of the server: data/edgellm/edgellm.json, section serve.
  options ? { },
  name ? "${engine.modelName}-serve",
}:
let
  # The server refuses requests for any other model; its own choice would be a name of the store.
  serverOptions = { servedModelName = engine.modelName; } // options;
  driver = engine.runtimePackage.driver or null;
  keyFile = check.secrets.outsideStore function "apiKeyFile" apiKeyFile;
  flags =
    commandWords {
      inherit host;
      port = check.arguments.between function "port" 1 65535 port;
      api-key-file = keyFile;
    }
    ++ checks.flags "serve" (checks.options function "serve" serverOptions);
in
if engine.kind != "edgellm" then
  throw "${function}: an engine of kind ${engine.kind}, where edgellm is needed."
else if engine.builder != "direct" then
  throw (
    "${function}: the engine was built by builder = \"onnx\", which NVIDIA's C++ runtime executes "
    + "and tensorrt-edgellm-serve does not; build it with builder = \"direct\"."
  )
else
  builtins.seq keyFile pkgs.stdenvNoCC.mkDerivation {
    inherit name;
    buildCommandPath = ../../builders/edgellm-serve.sh;
    inherit engine enginix;
    inherit (engine) model;
    inherit (enginix) bash launcher;
    python = "${engine.runtimePackage}/bin/python3";
    driver = if driver == null then "" else "${driver}";
    flags = lib.escapeShellArgs (builtins.deepSeq flags flags);
    passthru = {
      inherit engine host;
      inherit (engine) kind runtime;
      modelName = engine.modelName;
      httpPort = port;
      inherit (serverOptions) servedModelName;
    };
    meta = artefactMeta engine {
      description = "OpenAI server of TensorRT Edge-LLM for ${engine.modelName}";
      mainProgram = name;
    };
  }
