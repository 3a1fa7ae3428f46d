# A Triton server's own OpenAI door: `openai` of mkTritonServer -> mkGateway's derivation, or null.
{ check, mkGateway, ... }:
let
  function = "mkTritonServer: openai";
in
# { name; kind; host; httpPort; openai; image; }
server:
let
  given = check.arguments.only function [
    "enable"
    "host"
    "httpPort"
    "keyFile"
    "clients"
    "limits"
    "aliases"
  ] server.openai;
  # Where the gateway finds the server, which mkGateway reads off.
  behind = {
    outPath = server.name;
    repo = { };
    inherit (server) kind host httpPort;
  };
in
if !(given.enable or false) then
  null
else if server.kind != "reference" then
  # triton-inference-server/server, python/openai/README.md: in the containers of TensorRT-LLM, its bindings and
  # requirements are installed with pip before it starts; no image of data/runtimes.json has them.
  throw "${function}: the runtime's image ${server.image} has no OpenAI frontend of Triton's that starts: NVIDIA leaves its Python packages out. Serve the engine with mkServe, which is trtllm-serve, and put mkGateway before it for keys, limits and several servers."
else
  mkGateway (
    {
      name = "${server.name}-openai";
      servers.${server.name} = behind;
      routing.aliases = given.aliases or { };
    }
    // builtins.removeAttrs given [
      "enable"
      "aliases"
    ]
  )
