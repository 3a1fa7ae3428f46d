# A Triton server's own OpenAI door: `openai` of mkTritonServer -> null, or what the server gets of it:
# command: mkGateway's derivation, a second command (kind reference), else null: Triton's own OpenAI frontend of TensorRT-LLM's
# images stands in tritonserver's place, and words are enginix serve's, but for the port's; passthru: what says where it is.
{
  lib,
  check,
  mkGateway,
  ...
}@scope:
let
  function = "mkTritonServer: openai";
  table = lib.importJSON ../python/enginix/data/triton_openai.json;
  mkFrontend = import ./triton-openai-frontend.nix scope;

  ofGateway = [
    "host"
    "clients"
    "limits"
    "aliases"
  ];
  ofFrontend = [
    "flags"
    "source"
  ];

  flags = check.flags.words {
    where = function;
    name = "Triton's OpenAI frontend";
    it = "it";
    option = "--openai-flag";
    least = 1;
  } table.options;
in
# { name; kind; host; httpPort; grpcPort; openai; image; version; ranks; runtime; secret; given; }
server:
let
  inherit (server) kind;
  given = check.arguments.only function (
    [
      "enable"
      "httpPort"
      "keyFile"
    ]
    ++ ofGateway
    ++ ofFrontend
  ) server.openai;
  # Where the gateway finds the server, which mkGateway reads off.
  behind = {
    outPath = server.name;
    repo = { };
    inherit (server) kind host httpPort;
  };
  refuse = what: fix: throw "${function}: ${what}; ${fix}.";
  served = "serve the engine with mkServe, which is trtllm-serve, and put mkGateway before it for keys, limits and several servers";
  foreign = builtins.filter (n: given ? ${n}) (if kind == "reference" then ofFrontend else ofGateway);
  row = server.runtime.row;
  httpPort = given.httpPort or 9000;
in
if !(given.enable or false) then
  null
else if foreign != [ ] then
  refuse "${builtins.head foreign} is not for kind ${kind}" (
    if kind == "reference" then
      "its door is the gateway, which takes clients, limits and aliases"
    else
      "its door is Triton's own frontend, on the server's host; put mkGateway before it"
  )
else if kind == "reference" then
  let
    gateway = mkGateway (
      {
        name = "${server.name}-openai";
        servers.${server.name} = behind;
        routing.aliases = given.aliases or { };
      }
      // builtins.removeAttrs given [
        "enable"
        "aliases"
      ]
    );
  in
  {
    command = gateway;
    words = [ ];
    passthru = gateway;
  }
else if (row.paths.triton or null) == null then
  refuse "the runtime's image ${server.image} has no Triton, and so no OpenAI frontend of Triton's" served
else if builtins.compareVersions server.version table.oldest < 0 then
  refuse "the frontend of tritonserver ${server.version} was not read; ${table.oldest} is the oldest" served
else if table.kinds.${kind} or "it is of no image" != null then
  refuse "Triton's OpenAI frontend does not fit kind ${kind}: ${table.kinds.${kind} or "it is part of TensorRT-LLM's images"}" served
else if server.ranks != 1 then
  refuse "Triton's OpenAI frontend serves one rank, the engine has ${toString server.ranks}" served
else if server.host != "127.0.0.1" && server.host != "::1" then
  refuse "host is ${server.host}, but the frontend has one address for all its endpoints and a key for OpenAI's alone" "leave it on loopback, with mkGateway before it"
else if server.given ? grpcPort && server.grpcPort == null then
  refuse "grpcPort = null, but the frontend starts KServe's HTTP and gRPC together" "leave it out"
else if server.given.flags or { } != { } then
  refuse "flags are tritonserver's, which the frontend does not start" "take openai.flags"
else if server.given.adminKeyFile or null != null then
  refuse "adminKeyFile opens restricted APIs, and the frontend's KServe endpoints restrict none" "leave it out"
else
  {
    command = null;
    passthru = {
      inherit (server) host;
      inherit httpPort;
      kind = "openai";
      model = "ensemble";
    };
    words = [
      "--openai-frontend"
      "${mkFrontend server.runtime (given.source or null)}"
    ]
    ++ lib.optionals (given.keyFile or null != null) [
      "--openai-key-file"
      (server.secret "openai.keyFile" given.keyFile)
    ]
    ++ flags server.version (given.flags or { });
  }
