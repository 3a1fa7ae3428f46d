# mkTritonServer :: { repo, … } -> derivation
#
# The command that serves a repository: loopback unless told otherwise, every option checked here.
{
  lib,
  pkgs,
  check,
  enginix,
  tritonserver,
  ...
}:
let
  function = "mkTritonServer";
  build =
    {
      # mkTritonRepo's output.
      repo,
      # Address of all three endpoints.
      host ? "127.0.0.1",
      httpPort ? 8000,
      grpcPort ? 8001,
      metricsPort ? 8002,
      name ? repo.modelName,
    }:
    let
      port = check.arguments.atLeast function;
      flags = [
        "--host"
        host
        "--http-port"
        (port "httpPort" 0 httpPort)
        "--grpc-port"
        (port "grpcPort" 0 grpcPort)
        "--metrics-port"
        (port "metricsPort" 0 metricsPort)
      ];
    in
    pkgs.stdenvNoCC.mkDerivation {
      name = "${name}-triton-server";
      buildCommandPath = ./builders/triton-server.sh;
      inherit repo tritonserver enginix;
      inherit (pkgs) bash;
      flags = lib.escapeShellArgs (builtins.deepSeq flags flags);
      passthru = {
        inherit repo tritonserver;
        inherit (repo) engine kind runtime;
        modelName = name;
      };
      meta = {
        description = "Triton Inference Server for ${name}";
        mainProgram = "${name}-triton-server";
      };
    };
in
args:
build (
  check.arguments.only function [
    "repo"
    "host"
    "httpPort"
    "grpcPort"
    "metricsPort"
    "name"
  ] args
)
