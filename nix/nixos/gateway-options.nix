# Options of the gateway. Types and documentation only.
{ lib }:
let
  inherit (lib)
    literalMD
    mkEnableOption
    mkOption
    types
    ;
  count =
    description:
    mkOption {
      type = types.ints.unsigned;
      default = 0;
      inherit description;
    };
  client = {
    options = {
      keyFile = mkOption {
        type = types.str;
        example = "/run/secrets/alice";
        description =
          "File with this client's key, one line; systemd hands it over as a credential.";
      };
      models = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "Models that the client may use; empty allows all.";
      };
      requestsPerMinute = count "Limit; 0 turns it off.";
      tokensPerMinute = count "Limit; 0 turns it off.";
      parallelRequests = count "Limit; 0 turns it off.";
    };
  };
in
{
  enable = mkEnableOption (
    "a gateway (LiteLLM) with OpenAI's interface, keys and limits in front of the servers: the "
    + "service `enginix-gateway`"
  );

  host = mkOption {
    type = types.str;
    default = "127.0.0.1";
    description = "Listen address of the gateway; any other than loopback needs a key.";
  };

  port = mkOption {
    type = types.port;
    default = 4000;
    description = "Port of the gateway.";
  };

  openFirewall = mkOption {
    type = types.bool;
    default = false;
    description = "Whether to open the gateway's port in the firewall.";
  };

  keyFile = mkOption {
    type = types.nullOr types.str;
    default = null;
    example = "/run/secrets/enginix-gateway";
    description = ''
      File with the operator's key, one line: all models, no limits. systemd hands it to the service
      as a credential: the key is neither in the store nor in the unit's text.
    '';
  };

  metricsKeyFile = mkOption {
    type = types.nullOr types.str;
    default = null;
    example = "/run/secrets/enginix-gateway-metrics";
    description = ''
      File with a key that reads `/metrics` and nothing else. With `prometheus.enable` this
      machine's Prometheus scrapes the gateway with it, and must be able to read the file.
    '';
  };

  clients = mkOption {
    type = types.attrsOf (types.submodule client);
    default = { };
    description = "Further keys, by client, with their limits.";
  };

  models = mkOption {
    type = types.attrsOf (types.listOf types.str);
    default = { };
    defaultText = literalMD "each server by its own name";
    example = {
      qwen3 = [
        "a"
        "b"
      ];
    };
    description = ''
      Models by the names that clients use: each is a list of servers of this machine, which share
      its requests. Empty offers each server by its own name.
    '';
  };

  aliases = mkOption {
    type = types.attrsOf types.str;
    default = { };
    description = "Further names of models.";
  };

  fallbacks = mkOption {
    type = types.attrsOf (types.listOf types.str);
    default = { };
    description = "Models to try, in order, when no server of a model answers.";
  };

  memoryMax = mkOption {
    type = types.nullOr (types.either types.ints.positive types.str);
    default = null;
    example = "2G";
    description = ''
      Largest amount of the machine's memory that the service may take (systemd's `MemoryMax=`); the
      kernel ends it beyond. Null sets no limit.
    '';
  };

  tasksMax = mkOption {
    type = types.nullOr types.ints.positive;
    default = null;
    example = 512;
    description = ''
      Largest number of processes and threads of the service (systemd's `TasksMax=`). Null leaves
      systemd's own limit.
    '';
  };

  maxParallelRequests = count (
    "Requests at once; further ones are refused with status 429. 0 turns the limit off."
  );
}
