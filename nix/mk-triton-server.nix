# mkTritonServer :: { repo, … } -> derivation
#
# The command that serves a repository: on loopback by default, every option checked here. Kinds
# tensorrt and llmapi are served inside their runtime's image, by the tritonserver in it.
{
  lib,
  pkgs,
  check,
  enginix,
  tritonserver,
  mkRuntime,
  ...
}@scope:
let
  artefactMeta = import ./artefact-meta.nix scope;
  commandWords = import ./command-words.nix { inherit lib; };
  function = "mkTritonServer";
  table = lib.importJSON ../python/enginix/data/triton/triton_flags.json;

  triton = check.flags.words {
    where = function;
    name = "tritonserver";
    it = "tritonserver";
    option = "--triton-flag";
  } table.flags;

  gpu =
    name:
    let
      text = toString name;
    in
    if builtins.match "[0-9]{1,3}|(GPU|MIG)-[0-9A-Za-z/-]+" text != null then
      text
    else
      throw (
        "${function}: gpus: ${builtins.toJSON name} is not a GPU's index or UUID; `nvidia-smi -L` "
        + "lists them."
      );

  build =
    {
      # mkTritonRepo's output.
      repo,
      # Listen address for HTTP, gRPC and metrics.
      host ? "127.0.0.1",
      httpPort ? 8000,
      # null turns the endpoint off.
      grpcPort ? 8001,
      metricsPort ? 8002,
      # The GPUs that serve, by index or UUID; null leaves it to CUDA_VISIBLE_DEVICES.
      gpus ? null,
      # Options of tritonserver by their names: { http-thread-count = 16; }.
      flags ? { },
      # Variables that the server sees: { NCCL_DEBUG = "INFO"; }.
      environment ? { },
      # File outside the store, read at start: its content is the key of model control and client
      # shared memory.
      adminKeyFile ? null,
      # Seconds until it must answer, and for running requests at the end.
      startTimeout ? 600,
      exitTimeout ? 30,
      # A runtime's name or mkRuntime's output, of a kind that an image serves.
      runtime ? repo.engine.runtimePackage,
      name ? repo.modelName,
    }:
    let
      inherit
        ((import ./kinds).${(check.arguments.output function "repo" "mkTritonRepo" repo).kind})
        inImage
        ;
      stack = check.runtime.packageOf function mkRuntime runtime;
      imageTriton = (check.runtime.triton function stack).version;
      version =
        if !inImage then
          tritonserver.version or table.oldest
        else if imageTriton == null then
          throw (
            "${function}: it is not known which Triton the image of runtime ${stack.id} has; "
            + "name it in mkRuntime: versions.tritonServer = \"2.71.0\"."
          )
        else
          imageTriton;
      parallel = repo.engine.parallel or { };
      ranks = (parallel.tensorParallel or 1) * (parallel.pipelineParallel or 1);
      atLeast = check.arguments.atLeast function;
      portOf =
        argument: number: if number == null then null else atLeast argument 0 number;
      optionWords = triton version flags;
      gpuList =
        if gpus == null then
          null
        else if inImage && repo ? engine.parallel && builtins.length gpus != ranks then
          throw (
            "${function}: gpus names ${toString (builtins.length gpus)}, but the engine has "
            + "${toString ranks} rank${lib.optionalString (ranks != 1) "s"}; name one a rank."
          )
        else
          lib.concatMapStringsSep "," gpu gpus;
      words =
        commandWords {
          inherit host;
          http-port = atLeast "httpPort" 0 httpPort;
          grpc-port = portOf "grpcPort" grpcPort;
          no-grpc = grpcPort == null;
          metrics-port = portOf "metricsPort" metricsPort;
          no-metrics = metricsPort == null;
          start-timeout = atLeast "startTimeout" 1 startTimeout;
          exit-timeout = atLeast "exitTimeout" 0 exitTimeout;
          gpus = gpuList;
          admin-key-file = check.secrets.outsideStore function "adminKeyFile" adminKeyFile;
          env = lib.mapAttrsToList (variable: value: "${variable}=${toString value}") environment;
        }
        ++ optionWords;
    in
    pkgs.stdenvNoCC.mkDerivation {
      name = "${name}-triton-server";
      buildCommandPath = ./builders/triton-server.sh;
      inherit repo enginix;
      inherit (pkgs) bash;
      launcher = ./builders/launcher.sh;
      bubblewrap = if inImage then pkgs.bubblewrap or "" else "";
      installation = lib.escapeShellArgs (
        commandWords (
          if inImage then
            {
              rootfs = stack.rootfsFor repo.engine.model;
              pin = if stack.pinFile == "" then null else stack.pinFile;
              inherit (stack) driver;
            }
          else
            { inherit tritonserver; }
            // lib.optionalAttrs (repo ? engine.servingPython) {
              python = "${repo.engine.servingPython}/bin/python3";
            }
        )
      );
      flags = lib.escapeShellArgs (builtins.deepSeq [ version words ] words);
      # Read at start, where the builder has no such file.
      needsSecret = adminKeyFile != null;
      passthru = {
        inherit
          repo
          host
          httpPort
          grpcPort
          metricsPort
          gpus
          startTimeout
          exitTimeout
          ;
        # Words of `enginix serve`, beside the repository and the installation.
        serveWords = words;
        # Words of the checked `flags`, for units that write the other options themselves.
        inherit optionWords;
        inherit (repo) engine kind runtime;
        tritonVersion = version;
        modelName = name;
      }
      // lib.optionalAttrs (!inImage) { inherit tritonserver; };
      meta = artefactMeta (repo // lib.optionalAttrs inImage { runtimePackage = stack; }) (
        {
          description = "Triton Inference Server for ${name}";
          mainProgram = "${name}-triton-server";
        }
        // lib.optionalAttrs (!inImage && tritonserver ? meta.platforms) {
          inherit (tritonserver.meta) platforms;
        }
      );
    };
in
args:
if args ? openai then
  throw (
    "${function}: openai was removed; put mkGateway before the server, or serve the engine with "
    + "mkServe, which has OpenAI's interface."
  )
else
  check.arguments.call function build args
