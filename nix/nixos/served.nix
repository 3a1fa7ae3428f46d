# A server's options -> the program that serves it: Triton over a repository, or the engine's own
# server. Nothing is built yet.
{
  lib,
  # mkTritonRepo, mkTritonServer and mkServe.
  parts,
}:
let
  kinds = import ../kinds;
in
server:
let
  engine = if server.engine != null then server.engine else server.repo.engine or { };
  kind = engine.kind or server.repo.kind or "reference";
  hasTriton = kinds.${kind}.tritonRepo != null;
  settings = lib.filterAttrs (_: v: v != null && v != { }) server.settings;
  ownServer =
    if server.ownServer != null then
      server.ownServer
    else
      server.engine != null && !hasTriton;
in
rec {
  inherit
    engine
    kind
    settings
    ownServer
    ;
  inherit (kinds.${kind})
    inImage
    isPortable
    ownModels
    serverTakesKey
    spansMachines
    ;
  inherit hasTriton;
  runtime = engine.runtime or server.repo.runtime or "reference";
  hasOwnServer = kinds.${kind}.server != null;
  ranks = (engine.parallel.tensorParallel or 1) * (engine.parallel.pipelineParallel or 1);
  # The image that the server runs in; the CPU reference and Edge-LLM use this machine's own files.
  image = if inImage then engine.runtimePackage or null else null;

  repo =
    if ownServer then
      null
    else if server.repo != null then
      server.repo
    else
      parts.mkTritonRepo ({ inherit engine; } // settings);
  # Words of the options that mkTritonServer has checked.
  flags =
    if ownServer && server.flags != { } then
      throw "flags are options of tritonserver, and ownServer is on; leave them out."
    else if server.flags == { } then
      [ ]
    else
      (parts.mkTritonServer {
        inherit repo;
        inherit (server) host flags;
      }).optionWords;
  device = if server.repo != null then server.repo.device or "cpu" else settings.device or "cpu";
  # Kind rtx: PyTorch in place of NVIDIA's runtime.
  interpreter =
    if server.repo != null then server.repo.interpreter or false else settings.interpreter or false;
  onCpu = interpreter || isPortable && device == "cpu";

  # mkServe's command; arguments given at start win over the ones built in.
  serve =
    if !ownServer then
      null
    else
      parts.mkServe (
        {
          inherit engine;
          inherit (server) host;
          port = server.httpPort;
        }
        // (if engine ? serve then { options = settings; } else settings)
      );
}
