# No compiled plan: the pinned model and the arguments of TensorRT-LLM's PyTorch backend, for
# runtimes of any era.
{
  lib,
  pkgs,
  check,
  mkRuntime,
  ...
}@scope:
let
  artefactMeta = import ../../artefact-meta.nix { inherit lib; };
  function = ''mkEngine { kind = "llmapi"; }'';
  command = import ../../runtime/package.nix scope "command";
  gatedEngine = import ../shared/gated-engine.nix scope;
in
{
  model ? quantized,
  quantized ? checkpoint.model,
  # Not needed: this kind loads the model itself. Accepted so that switching kind is one attribute.
  checkpoint ? null,
  target ? null,
  runtime ? "trtllm-1.2.1",
  limits ? { },
  profile ? null,
  # Arguments of the LLM class (data/llmapi/llm_args.json).
  llmArgs ? { },
  tensorParallel ? if checkpoint == null then 1 else checkpoint.parallel.tensorParallel,
  # Gates, each with its bounds: null takes the kind's defaults (data/judgement/gates.json), { } is
  # recorded as "not gated". They ask the model in its runtime, on the target's GPU; an
  # engine without a target is not gated.
  gates ? null,
  # mkReferenceAnswers' output; null makes it of the model before quantization.
  reference ? null,
  # How the gates reach the GPU: "features" in Nix's sandbox, "relaxed" outside of it.
  isolation ? "features",
  # Minutes without an answer after which it counts as hung.
  stallMinutes ? 30,
  name ? model.modelName,
}:
let
  facts = model.model or { };
  targetSpec = if target == null then null else check.engine.target function target;
  gpu =
    if targetSpec == null then
      null
    else
      check.kindSupport.require "${name}-engine" "llmapi" (
        check.gpus.find function targetSpec.gpu
      ) (row.tensorrtLlm or null);
  id = check.runtime.idOf function runtime;
  stack = check.runtime.packageOf function mkRuntime runtime;
  row = check.engine.runtime function (check.runtime.rows runtime) "llmapi" { } id;
  ready = check.options.profile function profile;
  # The PyTorch backend clips sequences of some models below their context.
  clipped = facts // lib.optionalAttrs (facts ? pytorchContext) { context = facts.pytorchContext; };
  sizes = check.limits.resolve "${name}-engine" clipped ready.limits limits;
  arguments = check.llmapi.arguments function id llmArgs;
  parallel = {
    inherit tensorParallel;
    pipelineParallel = 1;
    expertParallel = 1;
  };
  ranks = check.engine.parallel "${name}-engine" facts parallel (targetSpec.count or null);
  # The PyTorch backend's cache is paged as the engines' is; its own layout of weights was not
  # measured (docs/reference/memory-plan.md).
  plan =
    if gpu == null then
      null
    else
      check.plan.fits "${name}-engine" "llmapi" (facts // weights) gpu (
        removeAttrs sizes [ "maxInputLen" "maxBeamWidth" ] // { inherit tensorParallel; }
      );
  weights.weightBytes = model.weightBytes or 0;
  request = {
    inherit name tensorParallel;
    kind = "llmapi";
    target = targetSpec.gpu or null;
    runtime = check.runtime.spec runtime;
    limits = sizes;
    llmArgs = arguments;
  };
  checked = builtins.deepSeq [
    row.id
    request
    ranks
    (check.limits.promised "${name}-engine" sizes llmArgs)
    gpu
    (check.llmapiAdvice.requireClass "${name}-engine" (facts.architecture or null) (
      row.tensorrtLlm or null
    ))
    plan
    (
      if gpu == null then
        null
      else
        check.target.fallback "${name}-engine" (
          check.target.computes "${name}-engine" (model.quantization or null) gpu
        ) gpu row (facts.dtype or null)
    )
    (check.engine.driver "${name}-engine" row (targetSpec.driver or null))
    (check.arguments.minutes function "stallMinutes" stallMinutes)
    (check.arguments.oneOf function "isolation" [ "features" "relaxed" ] isolation)
  ];
  shared = {
    inherit
      model
      checkpoint
      gpu
      limits
      parallel
      request
      ;
    kind = "llmapi";
    modelName = name;
    runtime = id;
    runtimePackage = stack;
    target = targetSpec;
  };
  meta = artefactMeta (model // { runtimePackage = stack; }) {
    description = "LLM API artefact of ${name}";
  };
  ungated = pkgs.stdenvNoCC.mkDerivation {
    name = "${name}-engine-llmapi";
    buildCommandPath = ../../builders/engine-llmapi.sh;
    nativeBuildInputs = [ command ];
    inherit model;
    request = builtins.toJSON request;
    passAsFile = [ "request" ];
    passthru = shared;
    inherit meta;
  };
in
builtins.seq (checked true) (gatedEngine {
  inherit
    function
    name
    model
    gates
    reference
    ungated
    meta
    ;
  kind = "llmapi";
  passthru = shared;
  contextLogits = true;
  notAskableReason =
    if gpu == null then "no target is given, so there is no GPU to ask the model on" else null;
  asker = {
    part = "tensorrt-llm";
    options = {
      stall-minutes = stallMinutes;
      pin = if stack.pinFile == "" then null else stack.pinFile;
    };
    attributes = import ../shared/gpu-build-attrs.nix scope {
      inherit
        function
        gpu
        stack
        model
        isolation
        ;
    };
  };
})
