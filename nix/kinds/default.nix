# Every kind of engine and what the functions must know of it; a new kind is a folder here and an
# entry in this set.
#
#   build          mkEngine's function of this kind: scope -> { its arguments } -> derivation
#   tritonRepo     arguments of mkTritonRepo that this kind takes; null where Triton serves it not
#   ownModels      whether its Triton models are enginix' own, before which a gateway may be
#   server         OpenAI server of its own, which mkServe starts; null where it has none
#   inImage        whether its runtime is NVIDIA's image
#   spansMachines  whether its ranks may be on several machines
#   isPortable     whether it runs on any machine, without a GPU (data/machine/engine_kinds.json)
#   serverTakesKey whether its own server asks clients for a key
let
  inherit (builtins.fromJSON (builtins.readFile ../../python/enginix/data/machine/engine_kinds.json))
    kinds
    ;
  withTable =
    name: row:
    {
      serverTakesKey = false;
      ownModels = false;
      inherit (kinds.${name}) isPortable;
    }
    // row;
in
builtins.mapAttrs withTable {
  reference = {
    build = import ./reference;
    tritonRepo = [
      "device"
      "maxTokensLimit"
      "addSpecialTokens"
      "skipSpecialTokens"
      "excludeInputInOutput"
      "ensembleInstances"
      "maxBatchSize"
      "maxQueueSize"
    ];
    server = null;
    ownModels = true;
    inImage = false;
    spansMachines = false;
  };
  tensorrt = {
    build = import ./tensorrt;
    tritonRepo = [
      "decoupled"
      "chat"
      "accumulateTokens"
      "addSpecialTokens"
      "skipSpecialTokens"
      "excludeInputInOutput"
      "logitsDatatype"
      "parameters"
      "blsInstances"
      "maxBatchSize"
      "maxQueueDelayMicroseconds"
      "maxQueueSize"
      "postprocessingInstances"
      "preprocessingInstances"
    ];
    server = "trtllm-serve";
    inImage = true;
    spansMachines = true;
  };
  llmapi = {
    build = import ./llmapi;
    tritonRepo = [
      "decoupled"
      "chat"
    ];
    server = "trtllm-serve";
    inImage = true;
    spansMachines = false;
  };
  rtx = {
    build = import ./rtx;
    tritonRepo = [
      "interpreter"
      "maxTokensLimit"
      "addSpecialTokens"
      "skipSpecialTokens"
      "excludeInputInOutput"
      "ensembleInstances"
      "maxBatchSize"
      "maxQueueSize"
    ];
    server = null;
    ownModels = true;
    inImage = false;
    spansMachines = false;
  };
  edgellm = {
    build = import ./edgellm;
    tritonRepo = null;
    server = "tensorrt-edgellm-serve";
    serverTakesKey = true;
    inImage = false;
    spansMachines = false;
  };
}
