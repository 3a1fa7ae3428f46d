# TensorRT Edge-LLM, the engines that NVIDIA keeps alive: a pure export on a CPU, then a build on
# the target's GPU.
{
  lib,
  pkgs,
  check,
  ...
}@scope:
let
  artefactMeta = import ../../artefact-meta.nix { inherit lib; };
  gpuAccess = import ../../gpu-access.nix scope;
  commandWords = import ../../command-words.nix { inherit lib; };
  function = ''mkEngine { kind = "edgellm"; }'';
  checks = import ./checks.nix scope;
  enginix = import ./package.nix scope;
  mkExport = import ./export.nix scope;
  mkServer = import ./serve.nix scope;
  gatedEngine = import ../shared/gated-engine.nix scope;
  noRuntime =
    "no runtime with TensorRT is given. TensorRT is on NVIDIA's own index and unfree, "
    + "so enginix brings none.";
  needed =
    "tensorrt-edgellm ${checks.data.version} and TensorRT "
    + "(${lib.concatStringsSep " or " tensorrts})";
  # A package whose bin/python3 has the wheel and TensorRT. It may carry `driver` and `plugin`.
  runtimePython =
    scope.edgellm-runtime or (throw ''
      ${function}: ${noRuntime}
      Pass a package whose bin/python3 has ${needed}:
        (mkLib pkgs).override { edgellm-runtime = …; }
      The export needs none of it: it is the attribute `export` of this engine.'');
  tensorrts = builtins.attrNames (
    builtins.listToAttrs (map (p: lib.nameValuePair p.tensorrt null) checks.data.payloads)
  );
in
{
  # mkHfModel's output, or mkQuantized's.
  model ? quantized,
  quantized ? checkpoint.model,
  # Not needed: this kind exports the model itself. Accepted so that switching kind is one
  # attribute.
  checkpoint ? null,
  # A GPU's name (`enginix target` lists them), { gpu; count; driver; }, or
  # { sm; memoryGB; count; driver; } for any other GPU.
  target,
  # A runtime of data/runtime/runtimes.json that has this kind.
  runtime ? "edgellm-${checks.data.version}",
  # maxInputLen, maxBatchSize, maxKvCacheCapacity; always written out.
  limits ? { },
  # Options of the exporter: fp8Embedding, int4GemmPluginVersion, targetSm.
  exportOptions ? { },
  # "direct": NVIDIA's experimental builder reads the model; its engines are served by mkServe.
  # "onnx": NVIDIA's llm_build reads the export; its engines run in NVIDIA's C++ runtime.
  builder ? "direct",
  # llm_build, for builder "onnx": a package.
  llmBuild ? null,
  # How the build reaches the GPU: "features" in Nix's sandbox, "relaxed" outside of it.
  isolation ? "features",
  # Gates, each with its bounds: null takes the kind's defaults (data/judgement/gates.json), { } is
  # recorded as "not gated". They ask the engine by its own server, on the target's GPU.
  gates ? null,
  # mkReferenceAnswers' output; null makes it of the model before quantization.
  reference ? null,
  # Minutes without an answer after which the server counts as hung.
  stallMinutes ? 30,
  name ? checks.modelName function model,
}:
let
  engine = "${name}-engine";
  facts = model.model or { };
  targetSpec = check.engine.target function target;
  gpu = check.gpus.find function targetSpec.gpu;
  row = check.engine.runtime function (check.runtime.rows runtime) "edgellm" { } (
    check.runtime.idOf function runtime
  );
  sizes = checks.limits engine facts limits;
  weights.weightBytes = model.weightBytes or 0;
  plan = check.edgellmPlan.fits engine (facts // weights) gpu sizes;
  export = mkExport {
    inherit model name;
    options = exportOptions;
  };
  checked = builtins.deepSeq [
    row.id
    (checks.architecture engine (facts.architecture or model.architecture or null))
    (checks.described engine facts)
    (checks.format engine (model.quantization or null) gpu)
    (checks.kvCache engine (model.quantization or null) (facts.kvCacheQuantization or null))
    (checks.files engine (model.fileNames or null))
    (checks.options function "export" exportOptions)
    sizes
    (check.arguments.oneOf function "builder" [ "direct" "onnx" ] builder)
    (check.arguments.minutes function "stallMinutes" stallMinutes)
    access
    (
      if (builder == "onnx") != (llmBuild != null) then
        throw (
          "${function}: llmBuild (a package with bin/llm_build) goes with builder = \"onnx\", "
          + "and only with it."
        )
      else
        true
    )
    (
      if targetSpec.count == null || targetSpec.count == 1 then
        true
      else
        throw (
          "${function}: target.count = ${toString targetSpec.count}, but this kind runs on one GPU "
          + "(two are experimental on DGX Spark only)."
        )
    )
    (
      if scope ? edgellm-runtime && scope.edgellm-runtime ? plugin then
        null
      else
        checks.payload engine gpu
    )
    plan
  ] true;

  flags =
    commandWords {
      target = targetSpec.gpu;
      inherit builder;
      python = "${runtimePython}/bin/python3";
      driver = runtimePython.driver or null;
      plugin = runtimePython.plugin or null;
      llm-build = if llmBuild == null then null else "${llmBuild}/bin/llm_build";
      plan =
        if plan == null then
          null
        else
          builtins.toJSON { inherit (plan) weights workspace pool tokens; };
    }
    ++ checks.flags "build" sizes;

  access = gpuAccess function isolation [
    "cuda"
    "cuda-sm${toString gpu.sm}"
  ];

  shared = {
    inherit
      model
      export
      gpu
      builder
      plan
      runtime
      ;
    checkpoint = null;
    limits = sizes;
    kind = "edgellm";
    modelName = name;
    target = targetSpec;
    runtimePackage = runtimePython;
    # The command that serves it: mkServe's work for this kind.
    serve = mkServer self;
  };
  meta = artefactMeta model {
    description = "TensorRT Edge-LLM engine of ${name} for ${targetSpec.gpu}";
  };

  ungated = pkgs.stdenvNoCC.mkDerivation (
    access
    // {
      # The SM is in the name: a cache must never hand one GPU's engine to another.
      name = "${engine}-edgellm-sm${toString gpu.sm}";
      buildCommandPath = ../../builders/edgellm-engine.sh;
      nativeBuildInputs = [ enginix ];
      inherit model export;
      engineName = name;
      flags = lib.escapeShellArgs flags;
      # The runtime reads weights from the model while it serves; the export is done with.
      disallowedReferences = [ export ];
      passthru = shared;
      inherit meta;
    }
  );

  self = gatedEngine {
    inherit
      function
      name
      model
      gates
      reference
      ungated
      meta
      ;
    kind = "edgellm";
    passthru = shared;
    notAskableReason =
      if builder == "onnx" then
        "an engine of builder = \"onnx\" runs in NVIDIA's C++ runtime, which has no server to ask; "
        + "build it with builder = \"direct\""
      else
        null;
    asker = {
      part = "edgellm";
      options = {
        inherit model;
        python = "${runtimePython}/bin/python3";
        stall-minutes = stallMinutes;
      };
      attributes = access // {
        driver = if runtimePython.driver or null == null then "" else runtimePython.driver;
      };
    };
  };
in
# Kept lazy so that `export` builds without a TensorRT runtime.
builtins.seq checked (self // { inherit export; })
