# A compiled TensorRT plan: trtllm-build inside a pinned runtime of TensorRT-LLM's engine era, on
# the target's GPU.
{
  lib,
  pkgs,
  check,
  mkCheckpoint,
  mkRuntime,
  warn,
  ...
}@scope:
let
  artefactMeta = import ../../artefact-meta.nix { inherit lib; };
  gatedEngine = import ../shared/gated-engine.nix scope;
  function = ''mkEngine { kind = "tensorrt"; }'';
  driver = import ../../runtime/package.nix scope "driver";
  withoutNulls = lib.filterAttrs (_: value: value != null);
in
{
  # mkHfModel's output, or mkQuantized's.
  model ? quantized,
  quantized ? checkpoint.model,
  checkpoint ? mkCheckpoint { inherit model; },
  # A GPU's name (`enginix target` lists them), { gpu; count; driver; }, or
  # { sm; memoryGB; count; driver; } for any other GPU.
  target,
  # A runtime of data/runtime/runtimes.json that has the engine path, or mkRuntime's output.
  runtime ? "trtllm-1.2.1",
  # maxBatchSize, maxInputLen, maxSeqLen, maxNumTokens, maxBeamWidth; always written out.
  limits ? { },
  # "latency", "throughput" or "long-context": limits and options for a use, as far as the target
  # allows them.
  profile ? null,
  # Options of trtllm-build (data/tensorrt/build_options.json).
  plugins ? { },
  # { mode; maxDraftLen; eagleLayers; }: the last is num_eagle_layers of an EAGLE checkpoint, which
  # evaluation cannot read; the build reads the checkpoint's own.
  speculative ? { },
  # { dirs; source; targetModules; maxRank; }
  lora ? { },
  # Tactics of an earlier build: a file, for instance another engine's output `timing`.
  timingCache ? null,
  # Ranks built at once, a GPU each.
  workers ? 1,
  # "checkpoint": our checkpoint; "llm-api": TensorRT-LLM loads the model itself.
  strategy ? "checkpoint",
  # How the build reaches the GPU. "features": Nix's sandbox, with the GPU let in by the builder's
  # pre-build hook. "relaxed": outside the sandbox (`sandbox = relaxed`, and a trusted user).
  isolation ? "features",
  # Minutes without a sign of progress after which a stage counts as hung.
  stallMinutes ? 30,
  # Build with a driver older than the runtime's floor, where NVIDIA's compatibility package serves
  # it.
  acceptDriver ? false,
  # Gates, each with its bounds: null takes the kind's defaults (data/judgement/gates.json), { } is
  # recorded as "not gated". logits and coverage are of the checkpoint, which the reference kind
  # executes; the others ask the engine, on its GPU.
  gates ? null,
  # mkReferenceAnswers' output; null makes it of the model before quantization.
  reference ? null,
  name ? model.modelName,
}:
let
  engine = "${name}-engine";
  facts = model.model or { };
  named = facts.architecture or null;
  targetSpec = check.engine.target function target;
  gpu = check.gpus.find function targetSpec.gpu;

  id = check.runtime.idOf function runtime;
  row = check.engine.runtime function (check.runtime.rows runtime) "tensorrt" {
    target = targetSpec.gpu;
    architecture = named;
    inherit limits;
  } id;
  stack = check.runtime.packageOf function mkRuntime runtime;

  parallel =
    if strategy == "checkpoint" then
      checkpoint.parallel
    else
      {
        tensorParallel = 1;
        pipelineParallel = 1;
        expertParallel = 1;
      };
  ranks = check.engine.parallel engine facts parallel targetSpec.count;

  quantization = check.target.quantization engine named (model.quantization or null) gpu;
  kvCache = check.target.kvCache engine named (facts.kvCacheQuantization or null) gpu;
  architecture = check.target.architecture engine named;

  ready = check.options.profile function profile;
  sizes = check.limits.resolve engine facts ready.limits limits;
  eagleLayers =
    let
      layers = speculative.eagleLayers or (facts.eagleLayers or null);
    in
    if layers == null then null else check.arguments.atLeast function "eagleLayers" 1 layers;
  effective = check.limits.effective engine sizes options (facts // { inherit eagleLayers; });
  requestedOptions = plugins // speculativeOptions // loraOptions;
  options = check.options.resolve function id {
    inherit quantization kvCache architecture;
    inherit (gpu) sm;
    inherit (parallel) tensorParallel;
    inherit eagleLayers strategy;
  } ready.options requestedOptions;
  speculativeOptions = check.arguments.call "${function}: speculative" (
    {
      mode ? null,
      maxDraftLen ? null,
      eagleLayers ? null,
    }:
    withoutNulls {
      speculativeDecodingMode = mode;
      inherit maxDraftLen;
    }
  ) speculative;
  loraOptions = check.arguments.call "${function}: lora" (
    {
      dirs ? null,
      source ? null,
      targetModules ? null,
      maxRank ? null,
    }:
    withoutNulls {
      loraPlugin = if lora == { } then null else "auto";
      loraDir = if dirs == null then null else map (dir: "${dir}") dirs;
      loraCkptSource = source;
      loraTargetModules = targetModules;
      maxLoraRank = maxRank;
    }
  ) lora;

  weights.weightBytes = model.weightBytes or 0;
  plan = check.plan.fits engine "tensorrt" (facts // weights) gpu (
    removeAttrs effective [ "maxInputLen" "maxBeamWidth" ]
    // {
      inherit (parallel) tensorParallel pipelineParallel;
    }
  );

  acceptedDriver = check.engine.driver engine row targetSpec.driver;
  checked = builtins.deepSeq [
    row.id
    quantization
    kvCache
    architecture
    (check.limits.chunks engine effective options)
    options
    plan
    acceptedDriver
    (check.engine.pipeline engine architecture parallel.pipelineParallel)
    (check.arguments.atLeast function "workers" 1 workers)
    (check.arguments.minutes function "stallMinutes" stallMinutes)
    (check.arguments.oneOf function "strategy" [ "checkpoint" "llm-api" ] strategy)
    (check.arguments.oneOf function "isolation" [ "features" "relaxed" ] isolation)
    (
      if workers > ranks then
        throw (
          "${function}: workers = ${toString workers}, but the engine has ${toString ranks} "
          + "rank${lib.optionalString (ranks != 1) "s"}."
        )
      else
        true
    )
  ];

  warnings =
    check.target.warnings {
      inherit quantization kvCache architecture;
      inherit (gpu) sm;
    }
    ++ check.kindSupport.otherSystem gpu pkgs.stdenvNoCC.hostPlatform.system;
  withWarnings = value: builtins.foldl' (v: w: warn
    "${engine}-sm${toString gpu.sm}: ${w}" v) value warnings;

  place = import ../shared/gpu-build-attrs.nix scope {
    inherit
      function
      gpu
      stack
      model
      isolation
      ;
  };

  request = {
    inherit name strategy workers;
    kind = "tensorrt";
    target = targetSpec.gpu;
    runtime = check.runtime.spec runtime;
    limits = sizes;
    inherit options;
    # Asked for by name: where TensorRT-LLM would change one of these, the build refuses.
    named = builtins.attrNames requestedOptions;
    timingCache = if timingCache == null then null else "${timingCache}";
    inherit stallMinutes acceptDriver;
    pin = if stack.pinFile == "" then null else "${stack.pinFile}";
    plan =
      if plan == null then
        null
      else
        {
          inherit (plan)
            weights
            workspace
            pool
            tokens
            certainty
            ;
        };
  };

  # The machine is looked at before the weights are fetched: an engine's inputs may be hundreds of
  # gigabytes. A model without a pin has its own first error.
  machine = pkgs.stdenvNoCC.mkDerivation (
    place
    // {
      name = "enginix-machine-sm${toString gpu.sm}";
      buildCommandPath = ../../builders/engine-machine.sh;
      nativeBuildInputs = [ driver ];
      request = builtins.toJSON {
        target = targetSpec.gpu;
        runtime = id;
        inherit acceptDriver;
      };
      passAsFile = [ "request" ];
    }
  );
  inputs =
    {
      inherit model;
    }
    // lib.optionalAttrs (strategy == "checkpoint") { inherit checkpoint; }
    // lib.optionalAttrs (model.locked or true) {
      inherit machine;
    };
  shared = {
    inherit
      model
      gpu
      limits
      request
      warnings
      parallel
      ;
    checkpoint = if strategy == "checkpoint" then checkpoint else null;
    kind = "tensorrt";
    modelName = name;
    runtime = id;
    runtimePackage = stack;
    target = targetSpec;
  };
  meta = artefactMeta (model // { runtimePackage = stack; }) {
    description = "TensorRT engine of ${name} for ${targetSpec.gpu}";
  };
  ungated = pkgs.stdenvNoCC.mkDerivation (
    place
    // inputs
    // lib.optionalAttrs (warnings != [ ]) { warnings = lib.concatStringsSep "\n" warnings; }
    // {
      # The SM is in the name: a cache must never hand one GPU's engine to another.
      name = "${engine}-sm${toString gpu.sm}";
      buildCommandPath = ../../builders/engine-tensorrt.sh;
      nativeBuildInputs = [ driver ];
      outputs = [
        "out"
        "timing"
      ];
      # An engine is data. A path left in one of its files would keep the weights alive on every
      # server.
      allowedReferences = [ ];
      request = builtins.toJSON request;
      passAsFile = [ "request" ];
      passthru = shared;
      inherit meta;
    }
  );
in
builtins.seq (checked true) (
  withWarnings (gatedEngine {
    inherit
      function
      name
      model
      gates
      reference
      ungated
      meta
      ;
    kind = "tensorrt";
    passthru = shared // {
      inherit (ungated) timing;
    };
    checkpoint = if strategy == "checkpoint" then checkpoint else null;
    contextLogits = options.gatherContextLogits or false || options.gatherAllTokenLogits or false;
    asker = {
      part = "tensorrt-llm";
      options = {
        stall-minutes = stallMinutes;
        accept-driver = acceptDriver;
        pin = if stack.pinFile == "" then null else stack.pinFile;
      };
      attributes = place;
    };
  })
)
