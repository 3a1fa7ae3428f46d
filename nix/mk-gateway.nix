# mkGateway :: { servers, … } -> derivation
#
# OpenAI's interface in front of several servers: LiteLLM, with keys from files, limits, routing.
{
  lib,
  pkgs,
  check,
  enginix-gateway,
  ...
}:
let
  commandWords = import ./command-words.nix { inherit lib; };
  function = "mkGateway";
  strategies = [
    "simple-shuffle"
    "latency-based-routing"
  ];
  limitNames = [
    "maxParallelRequests"
    "maxBodyBytes"
    "defaultMaxTokens"
    "silenceSeconds"
    "bodySeconds"
  ];
  clientNames = [
    "keyFile"
    "models"
    "requestsPerMinute"
    "tokensPerMinute"
    "parallelRequests"
  ];
  serverNames = [
    "server"
    "url"
    "kind"
    "model"
    "keyFile"
  ];
  count = check.arguments.atLeast function;

  # A secret's file: a path at run time, or the name of a systemd credential; never a path of the
  # store.
  keyFileOf =
    where: given:
    let
      file = check.secrets.outsideStore function where given;
    in
    if !builtins.isString file || file == "" then
      throw (
        "${function}: ${where} must be the path of a file with the key, or the name of a systemd "
        + "credential."
      )
    else
      file;

  isServer =
    value: value ? type && value.type == "derivation" || value ? drvPath || value ? outPath;

  # A server of this project as a row of the gateway's description.
  ofServer =
    where: server:
    let
      missing =
        what: throw "${function}: ${where} has no ${what}; pass { url; kind; model; } instead.";
      port = server.httpPort or (missing "httpPort");
      address = "http://${check.address.local (server.host or "127.0.0.1") port}";
      kind = server.kind or (missing "kind");
    in
    if port == 0 then
      throw (
        "${function}: ${where} has httpPort = 0, a free port that is chosen at start; give it one "
        + "that is fixed."
      )
    else if !(server ? repo) then
      {
        kind = "openai";
        url = "${address}/v1";
        model = server.servedModelName or (server.engine.modelName or server.modelName);
      }
    else if (import ./kinds).${kind}.ownModels or false then
      {
        kind = "triton";
        url = address;
        model = "ensemble";
      }
    else
      throw (
        "${function}: ${where} is a Triton server of kind ${kind}; NVIDIA's models there tell "
        + "neither why an answer ended nor its tokens as OpenAI's interface has them. Serve the "
        + "engine with mkServe."
      );

  row =
    where: given:
    if isServer given then
      ofServer where given
    else
      let
        args = check.arguments.only "${function}: ${where}" serverNames given;
        base = if args ? server then ofServer where args.server else { };
        fields = base // removeAttrs args [ "server" ];
        need = name: fields.${name} or (throw "${function}: ${where} has no ${name}.");
      in
      {
        kind = check.arguments.oneOf function "${where}.kind" [
          "triton"
          "openai"
        ] (need "kind");
        url =
          if builtins.match "https?://[^/@ ]+(/[^ ]*)?" (need "url") != null then
            fields.url
          else
            throw (
              "${function}: ${where}.url = ${fields.url}, but it must be http://host:port, or "
              + "https."
            );
        model = need "model";
      }
      // lib.optionalAttrs (fields ? keyFile) {
        keyFile = keyFileOf "${where}.keyFile" fields.keyFile;
      };

  build =
    {
      # Name that clients use -> server, or list of servers that share the work. A server is the
      # output of mkTritonServer or mkServe, { server; model; keyFile; } with what that lacks, or
      # { url; kind; model; } for any other: kind "triton" (a repository of mkTritonRepo) or
      # "openai" (OpenAI's interface; url with its /v1).
      servers,
      name ? "gateway",
      # Listen address; any other than loopback needs a key.
      host ? "127.0.0.1",
      httpPort ? 4000,
      # File with the operator's key (all models, no limits), read at start; "name" alone is a
      # systemd credential.
      keyFile ? null,
      # File with a key that reads /metrics and nothing else, for Prometheus.
      metricsKeyFile ? null,
      # Client -> { keyFile; models; requestsPerMinute; tokensPerMinute; parallelRequests; }
      clients ? { },
      # { maxParallelRequests; maxBodyBytes; defaultMaxTokens; silenceSeconds; bodySeconds; }
      limits ? { },
      # { strategy; aliases; fallbacks; }: how servers of one model are chosen; further name ->
      # model; model -> models that are tried when no server of it answers.
      routing ? { },
    }:
    let
      models = builtins.mapAttrs (
        model: given:
        let
          list = if builtins.isList given then given else [ given ];
        in
        if list == [ ] then
          throw "${function}: servers.${model} is empty."
        else
          builtins.genList (i: row "servers.${model}[${toString i}]" (builtins.elemAt list i)) (
            builtins.length list
          )
      ) servers;
      modelNames = builtins.attrNames models;
      model = where: check.arguments.oneOf function where modelNames;
      knownRouting = check.arguments.only "${function}: routing" [
        "strategy"
        "aliases"
        "fallbacks"
      ] routing;
      isCount = n: builtins.elem n [ "requestsPerMinute" "tokensPerMinute" "parallelRequests" ];
      description = {
        version = 1;
        inherit name models;
        strategy = check.arguments.oneOf function "routing.strategy" strategies (
          knownRouting.strategy or "simple-shuffle"
        );
        aliases = builtins.mapAttrs (
          alias: target:
          if models ? ${alias} then
            throw "${function}: routing.aliases.${alias} is a model already."
          else
            model "routing.aliases.${alias}" target
        ) (knownRouting.aliases or { });
        fallbacks = builtins.mapAttrs (
          name: others:
          builtins.seq (model "routing.fallbacks" name) (
            map (model "routing.fallbacks.${name}") others
          )
        ) (knownRouting.fallbacks or { });
        clients = builtins.mapAttrs (
          client: given:
          let
            where = "clients.${client}";
            args = check.arguments.only "${function}: ${where}" clientNames given;
          in
          builtins.mapAttrs (n: v: if isCount n then count "${where}.${n}" 0 v else v) args
          // {
            keyFile = keyFileOf "${where}.keyFile" (args.keyFile or null);
          }
          // lib.optionalAttrs (args ? models) {
            models = map (model "${where}.models") args.models;
          }
        ) clients;
        limits = builtins.mapAttrs (
          n: count "limits.${n}" (if n == "maxParallelRequests" then 0 else 1)
        ) (check.arguments.only "${function}: limits" limitNames limits);
      }
      // lib.optionalAttrs (keyFile != null) { keyFile = keyFileOf "keyFile" keyFile; }
      // lib.optionalAttrs (metricsKeyFile != null) {
        metricsKeyFile = keyFileOf "metricsKeyFile" metricsKeyFile;
      };
      flags = commandWords {
        inherit host;
        port = count "httpPort" 0 httpPort;
      };
    in
    if modelNames == [ ] then
      throw "${function}: servers is empty."
    else if !check.address.isLoopback host && keyFile == null && clients == { } then
      throw (
        "${function}: host = ${host} is reachable by others, and there is no key; set keyFile or "
        + "clients."
      )
    else if metricsKeyFile != null && keyFile == null && clients == { } then
      throw (
        "${function}: metricsKeyFile is set, but no key lets requests in; set keyFile or clients, "
        + "too."
      )
    else
      pkgs.stdenvNoCC.mkDerivation {
        inherit name;
        buildCommandPath = ./builders/gateway.sh;
        description = pkgs.writeText "${name}.json" (builtins.toJSON description);
        enginix = enginix-gateway;
        inherit (pkgs) bash;
        launcher = ./builders/launcher.sh;
        flags = lib.escapeShellArgs (builtins.deepSeq flags flags);
        preferLocalBuild = true;
        passthru = {
          inherit host httpPort servers;
          kind = "gateway";
          runtime = null;
          engine = null;
          modelName = name;
        };
        meta = {
          platforms = import ./systems.nix;
          license = lib.licenses.asl20;
          description = "OpenAI interface in front of ${lib.concatStringsSep ", " modelNames}";
          mainProgram = name;
        };
      };
in
check.arguments.call function build
