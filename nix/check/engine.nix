# Runtime, driver and parallelism of an engine.
{
  lib,
  names,
  arguments,
  gpus,
  llmapiAdvice,
  ...
}:
let
  # A value as a user types it in Nix.
  show =
    v:
    if v == { } then
      "{ }"
    else if builtins.isAttrs v && v.type or null != "derivation" then
      "{ ${lib.concatStringsSep " " (lib.mapAttrsToList (n: x: "${n} = ${show x};") v)} }"
    else
      arguments.describe v;
  runtimesOf =
    runtimes: kind:
    builtins.filter (id: builtins.elem kind runtimes.${id}.kinds) (builtins.attrNames runtimes);
in
{
  # A runtime that has the kind. For a runtime after the engine era the error lists the ways on.
  # runtime :: string -> set -> string -> { target; limits; } -> string -> set
  runtime =
    function: runtimes: kind: asked: id:
    let
      row =
        runtimes.${id}
          or (throw "${function}: ${names.unknownRuntime id (runtimesOf runtimes kind)}");
      removed =
        "runtime \"${id}\" has no engine path: NVIDIA removed trtllm-build and the TensorRT "
        + "backend from TensorRT-LLM in June and July 2026 (PRs #15763, #15907, #15918).";
      engineRuntimes = lib.concatStringsSep "\" or \"" (runtimesOf runtimes "tensorrt");
      sameModel =
        "mkEngine { kind = \"llmapi\"; model = …; target = ${show asked.target}; "
        + "runtime = ${named}; limits = ${show asked.limits}; }";
      # A described runtime has no name: it is mkRuntime's output.
      named =
        if row.verified or true then
          "\"${id}\""
        else
          "mkRuntime { like = …; image = …; versions = { … }; }";
      onPytorch =
        if llmapiAdvice.has (asked.architecture or null) then
          "serve the same model by the PyTorch backend:\n              ${sameModel}"
        else
          llmapiAdvice.limit asked.architecture "serve the model with the llmapi kind";
      guide = "https://nvidia.github.io/TensorRT-LLM/legacy/tensorrt-backend-removal.html";
    in
    if builtins.elem kind row.kinds then
      row // { inherit id; }
    else if kind == "tensorrt" && builtins.elem "llmapi" row.kinds then
      throw ''
        ${function}: ${removed}
        Do one of these:
          - build on a runtime of the engine era: runtime = "${engineRuntimes}"
          - ${onPytorch}
        Migration guide: ${guide}''
    else
      throw (
        ''${function}: runtime "${id}" has no kind "${kind}". Runtimes that have it: ''
        + ''${lib.concatStringsSep ", " (runtimesOf runtimes kind)}.''
      );

  # A driver, where the target names one, against the runtime's floor.
  # driver :: string -> set -> string|null -> string|null
  driver =
    function: runtime: version:
    if
      version == null
      || runtime.driver or null == null
      || builtins.compareVersions version runtime.driver >= 0
    then
      version
    else
      throw (
        "${function}: runtime ${runtime.id} needs driver ${runtime.driver} or later (CUDA "
        + "${runtime.cuda}); the target has ${version}. Update the driver, or use an older runtime."
      );

  # Pipeline stages against the engine's class.
  # pipeline :: string -> string|null -> int -> int
  pipeline =
    function: architecture: stages:
    let
      rows = lib.importJSON ../../python/enginix/data/models/engine_classes.json;
      class = rows.engine.${toString architecture} or "";
    in
    if stages > 1 && rows.noPipeline ? ${class} then
      throw (
        "${function}: pipelineParallel = ${toString stages}, but TensorRT-LLM has no pipeline for "
        + "${architecture}: ${rows.noPipeline.${class}}. Use pipelineParallel = 1 and a larger "
        + "tensorParallel in mkCheckpoint."
      )
    else
      stages;

  # Ranks against the target's GPUs, experts against their groups.
  # parallel :: string -> set -> { tensorParallel; pipelineParallel; expertParallel; }
  #   -> int|null -> int
  parallel =
    function: model: p: count:
    let
      checked = n: arguments.atLeast function n 1 p.${n};
      ranks = checked "tensorParallel" * checked "pipelineParallel";
      experts = model.experts or null;
      kvHeads = model.kvHeads or null;
    in
    if ranks < 1 || count != null && ranks > count then
      throw (
        "${function}: tensorParallel ${toString p.tensorParallel} × pipelineParallel "
        + "${toString p.pipelineParallel} = ${toString ranks} ranks, but the target has "
        + "${toString count} GPU${lib.optionalString (count != 1) "s"}; lower them in "
        + "mkCheckpoint, or raise target.count."
      )
    else if experts != null && lib.mod experts p.expertParallel != 0 then
      throw (
        "${function}: expertParallel = ${toString p.expertParallel} does not divide the model's "
        + "${toString experts} experts."
      )
    else if experts == null && p.expertParallel != 1 && model ? heads then
      throw (
        "${function}: expertParallel = ${toString p.expertParallel}, "
        + "but the model has no experts."
      )
    else if
      kvHeads != null
      && lib.mod kvHeads p.tensorParallel != 0
      && lib.mod p.tensorParallel kvHeads != 0
    then
      throw (
        "${function}: tensorParallel = ${toString p.tensorParallel} and the model's "
        + "${toString kvHeads} key-value heads: one must divide the other."
      )
    else
      ranks;

  # A target as a GPU's name, or { gpu; memoryGB; count; driver; }. memoryGB is for a part whose
  # memory the table does not know, or that has another.
  # target :: string -> string|set -> { gpu; count; driver; }
  target =
    function: value:
    let
      build =
        {
          gpu ? null,
          sm ? null,
          memoryGB ? null,
          unlisted ? false,
          count ? null,
          driver ? null,
        }:
        let
          checked = {
            gpu =
              if gpu != null && sm == null && !unlisted then
                named gpu memoryGB
              else if gpu == null && sm != null then
                gpus.unnamed function sm memoryGB unlisted
              else
                throw "${function}: target has either gpu, or sm and memoryGB.";
            driver =
              if
                driver == null
                || builtins.isString driver && builtins.match "[0-9]+([.][0-9]+)*" driver != null
              then
                driver
              else
                throw (
                  "${function}: target.driver is ${arguments.describe driver}, not a version "
                  + "such as \"580.95.05\", as nvidia-smi prints it."
                );
            count =
              if count == null then null else arguments.atLeast function "target.count" 1 count;
          };
        in
        builtins.deepSeq checked checked;
      named =
        name: memoryGB:
        let
          found = gpus.find function name;
          ambiguity = builtins.seq found (gpus.ambiguity name);
          noted =
            if ambiguity == null then
              found.name
            else
              lib.warn "${function}: ${ambiguity}" found.name;
        in
        if memoryGB == null then
          noted
        else if !builtins.isInt memoryGB || memoryGB < 1 then
          throw (
            "${function}: target.memoryGB is ${arguments.describe memoryGB}, not a number of "
            + "gigabytes such as 16."
          )
        else if found.part == "other" then
          throw "${function}: target \"${found.name}\" says its memory itself; leave memoryGB out."
        else
          (gpus.find function "${found.name}-${toString memoryGB}gb").name;
    in
    if builtins.isString value then
      build { gpu = value; }
    else if builtins.isAttrs value then
      arguments.call "${function}: target" build value
    else
      throw (
        "${function}: target = ${arguments.describe value} is not a GPU's name, "
        + "nor { gpu; count; driver; }, nor { sm; memoryGB; count; driver; }."
      );
}
