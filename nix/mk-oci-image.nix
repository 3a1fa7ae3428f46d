# mkOciImage :: { server, … } -> derivation
#
# A program that streams a container image of a server to standard output (nixpkgs'
# streamLayeredImage):
#
#   nix build -o image .#image
#   ./image | docker load
#   ./image | skopeo copy docker-archive:/dev/stdin docker://…
#
# The image of a reference server is complete. The kinds of a runtime's image are layers on that
# image: `base`.
{
  lib,
  pkgs,
  check,
  enginix,
  ...
}@scope:
let
  ready = import ./ready-package.nix scope;
  function = "mkOciImage";
  runtimes = (lib.importJSON ../python/enginix/data/runtime/runtimes.json).runtimes;
  build =
    {
      # mkTritonServer's output, or mkServe's of an Edge-LLM engine.
      server,
      # The runtime's image as an archive, for kinds tensorrt and llmapi:
      # dockerTools.pullImage { imageName; imageDigest; sha256; } of the same image as mkRuntime's.
      base ? null,
      name ? "enginix/${server.modelName}",
      # null: a hash of the content, as nixpkgs has it.
      tag ? null,
      # Listen address inside the container, which has a network of its own: all addresses by
      # default.
      host ? "0.0.0.0",
      # Numeric, so that Kubernetes can see that it is not root.
      user ? 10001,
      # Largest number of layers; each is a store path or the rest.
      maxLayers ? 64,
      # The package with bin/kubectl, for engines of several nodes: the first starts the ranks of
      # the others.
      kubectl ? null,
    }:
    let
      row = server.engine.runtimePackage.row or runtimes.${server.runtime};
      inImage = row ? images;
      hasOwnServer = !(server ? repo);
      reference = row.images.${server.engine.runtimePackage.image}.reference;
      untagged = builtins.head (builtins.match "(.*):[^:/]*" reference);
      http = server.httpPort;
      ports =
        if hasOwnServer then
          { inherit http; }
        else
          lib.filterAttrs (_: p: p != null) {
            inherit http;
            grpc = server.grpcPort;
            metrics = server.metricsPort;
          };
      # Arguments given at start win over the ones built in. Inside the runtime's image the server
      # needs no sandbox.
      command =
        if inImage then
          [
            "${enginix}/bin/enginix"
            "serve"
            "${server.repo}"
            "--tritonserver"
            row.paths.triton
            "--model-runtime"
            server.runtime
            "--python"
            row.paths.python
          ]
          ++ server.serveWords
        else
          [ "${server}/bin/${server.meta.mainProgram}" ];
      # Whether the server generates: Docker asks periodically, Kubernetes at the start.
      probe = [
        "${ready}/bin/enginix"
        "ready"
        "http://127.0.0.1:${toString ports.http}"
        "--timeout"
        "20"
      ]
      ++ lib.optionals (!hasOwnServer) [
        "--triton"
        server.kind
      ];
      image = pkgs.dockerTools.streamLayeredImage (
        {
          inherit name tag maxLayers;
          contents = [ ];
          extraCommands = "mkdir -m 1777 tmp";
          config = {
            Entrypoint = command ++ [
              "--host"
              host
            ];
            User = "${toString user}:${toString user}";
            WorkingDir = "/tmp";
            Env = lib.mapAttrsToList (n: v: "${n}=${v}") (
              {
                HOME = "/tmp";
              }
              // (if inImage then row.environment else { })
              // lib.optionalAttrs (kubectl != null) { ENGINIX_KUBECTL = "${kubectl}/bin/kubectl"; }
            );
            ExposedPorts = builtins.listToAttrs (
              map (p: lib.nameValuePair "${toString p}/tcp" { }) (builtins.attrValues ports)
            );
            StopSignal = "SIGTERM";
            # Nanoseconds.
            Healthcheck = {
              Test = [ "CMD" ] ++ probe;
              Interval = 60 * 1000000000;
              Timeout = 30 * 1000000000;
              StartPeriod = (server.startTimeout or 600) * 1000000000;
            };
            Labels = {
              "org.opencontainers.image.title" = server.modelName;
              "org.opencontainers.image.description" = server.meta.description;
              "dev.enginix.kind" = server.kind;
              "dev.enginix.runtime" = server.runtime;
            };
          };
        }
        // lib.optionalAttrs (base != null) { fromImage = base; }
      );
    in
    if server.kind == "gateway" || !(server ? kind) then
      throw "${function}: server: a server of mkTritonServer or mkServe is needed."
    else if hasOwnServer && inImage then
      throw (
        "${function}: trtllm-serve runs NVIDIA's image as it is; take that image, and mount the "
        + "engine."
      )
    else if inImage && base == null then
      throw (
        "${function}: a server of kind ${server.kind} needs its runtime's image; pass base = "
        + "dockerTools.pullImage { imageName = \"${untagged}\"; imageDigest = …; sha256 = …; }."
      )
    else if !inImage && base != null then
      throw "${function}: a server of kind ${server.kind} needs no base; leave base out."
    else if base ? imageName && inImage && base.imageName != untagged then
      throw "${function}: base is ${base.imageName}, but the engine was built for ${untagged}."
    else if builtins.elem 0 (builtins.attrValues ports) then
      throw (
        "${function}: a port of the server is 0, a free port that is chosen at start; give it one "
        + "that is fixed."
      )
    else if check.address.isLoopback host then
      throw (
        "${function}: host = ${host} is the container's own loopback, which is unreachable from "
        + "outside; leave host out."
      )
    else if kubectl != null && !(import ./kinds).${server.kind}.spansMachines then
      throw (
        "${function}: kubectl starts ranks on other nodes, and a server of kind ${server.kind} is "
        + "on one; leave it out."
      )
    else if user == 0 then
      throw "${function}: user = 0 is root; pass any other number."
    else
      image
      // {
        inherit
          server
          ports
          user
          name
          command
          probe
          kubectl
          ;
        inherit (server) kind modelName;
      };
in
check.arguments.call function build
