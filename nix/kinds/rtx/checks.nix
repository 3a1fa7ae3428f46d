# What evaluation knows of TensorRT for RTX: architectures, formats, GPUs, limits, memory.
# data/rtx/rtx.json.
{ lib, check, ... }:
let
  data = lib.importJSON ../../../python/enginix/data/rtx/rtx.json;
  formats = data.formats.taken;
  among = lib.concatMapStringsSep ", " toString;
  gib = bytes: toString ((bytes + 1073741823) / 1073741824);
in
rec {
  inherit data;

  # architecture :: string -> string|null -> string|null
  architecture =
    function: name:
    if name == null || builtins.elem name data.architectures.taken then
      name
    else
      throw (
        "${function}: ${name} is not taken by kind rtx; taken are "
        + "${among data.architectures.taken}. "
        + "Instead: ${check.llmapiAdvice.limit name "serve the model with the llmapi kind"}."
      );

  # A number format of weights. Its matrices' own formats are the build's to check.
  # format :: string -> string|null -> string
  format =
    function: quantization:
    let
      name = if quantization == null then "NO_QUANT" else quantization;
    in
    if formats ? ${name} then
      name
    else
      throw (
        "${function}: ${name} is not taken by kind rtx"
        + "; taken are ${among (builtins.attrNames formats)}. Use kind = \"llmapi\" or "
        + "\"tensorrt\"."
      );

  # kvCache :: string -> string|null -> null
  kvCache =
    function: cache:
    if cache == null then
      null
    else
      throw (
        "${function}: TensorRT for RTX refuses a KV cache in ${cache}: it takes bfloat16 and "
        + "float16. Quantize the model without kvCache, or use kind = \"tensorrt\" or \"llmapi\"."
      );

  # headSize :: string -> int|null -> int|null
  headSize =
    function: size:
    let
      row = data.headSizes;
      isTaken = size >= row.least && size <= row.most && lib.mod size row.multiple == 0;
    in
    if size == null || isTaken then
      size
    else
      throw (
        "${function}: heads of ${toString size} have no fused attention in TensorRT for RTX; "
        + "${toString row.least} to ${toString row.most} in steps of ${toString row.multiple} "
        + "have. Use kind = \"llmapi\" or \"reference\"."
      );

  # One rank: an engine runs on one GPU.
  # ranks :: string -> { worldSize ? 1; … } -> int
  ranks =
    function: checkpoint:
    let
      count = checkpoint.worldSize or 1;
    in
    if count == 1 then
      count
    else
      throw (
        "${function}: the checkpoint has ${toString count} ranks, and an rtx engine runs on one "
        + "GPU. Pass a checkpoint of one rank, or use kind = \"tensorrt\" or \"llmapi\"."
      );

  # Names of GPUs and SMs → SMs, sorted; null is every SM that the format allows.
  # targets :: string -> string -> null | [ string | int ] -> [ int ]
  targets =
    function: format: requested:
    let
      able = formats.${format};
      othersFor =
        sm:
        lib.concatStringsSep " or " (
          builtins.filter (kind: kind != "rtx") (
            check.kindSupport.running {
              name = "SM ${toString sm}";
              inherit sm;
            }
          )
        );
      smOf =
        target:
        if builtins.isInt target then
          target
        else if builtins.isString target then
          (check.gpus.find function target).sm
        else
          throw (
            "${function}: targets holds ${check.arguments.describe target}; it takes names of GPUs "
            + "and SMs: targets = [ \"l4\" 89 ]."
          );
      # A part whose CPU the library is not for, though its SM is.
      refusal =
        target:
        if builtins.isString target then
          check.kindSupport.explain "rtx" (check.gpus.find function target) null
        else
          null;
      checked =
        target:
        let
          sm = smOf target;
        in
        if builtins.elem sm able && refusal target != null then
          throw "${function}: targets: ${refusal target}"
        else if builtins.elem sm able then
          sm
        else
          throw (
            "${function}: targets: ${toString target} is SM ${toString sm}, and kind rtx builds "
            + "${if format == "NO_QUANT" then "unquantized models" else format} for SM "
            + "${among able} alone. Leave it out, or use another kind for that GPU: "
            + "${othersFor sm}."
          );
      sms = map checked requested;
    in
    if requested == null then
      able
    else if !builtins.isList requested || requested == [ ] then
      throw "${function}: targets: pass a list of GPUs or SMs, or leave it out for all."
    else
      builtins.sort builtins.lessThan (
        map builtins.fromJSON (builtins.attrNames (lib.genAttrs (map toString sms) (_: null)))
      );

  # limits :: string -> { context ? null; … } -> set -> { maxBatchSize; maxSeqLen; stepTokens; }
  limits =
    function: facts: given:
    let
      rows = builtins.removeAttrs data.limits [ "about" ];
      names = builtins.attrNames rows;
      known = check.arguments.only "${function}: limits" names given;
      context = facts.context or null;
      mostOf =
        name:
        if name == "maxSeqLen" && context != null && context < rows.${name}.most then
          context
        else
          rows.${name}.most;
      least = a: b: if a < b then a else b;
      chosen = name: known.${name} or (least (mostOf name) rows.${name}.default);
    in
    lib.genAttrs names (
      name: check.arguments.between function "limits.${name}" 1 (mostOf name) (chosen name)
    );

  # Memory of the build.
  # memory :: string -> int -> int -> int
  memory =
    function: weightBytes: buildMemoryGB:
    let
      needed = data.buildMemory.base + data.buildMemory.factor * weightBytes;
    in
    if needed <= buildMemoryGB * 1073741824 then
      needed
    else
      throw (
        "${function}: the build takes up to ${gib needed} GiB of memory "
        + "(${toString data.buildMemory.factor} times the weights, and more), and buildMemoryGB = "
        + "${toString buildMemoryGB}. On a machine that has them, raise buildMemoryGB; else "
        + "quantize the model (FP8, W4A16_AWQ), or use kind = \"llmapi\", which builds nothing."
      );
}
