# Quantization × GPU × architecture on TensorRT-LLM's engine path: number_formats.json and
# engine_classes.json of data/models, and data/runtime/engine_support.json, a source a row.
{
  lib,
  names,
  kindSupport,
  llmapiAdvice,
  ...
}:
let
  support = lib.importJSON ../../python/enginix/data/runtime/engine_support.json;
  engineClasses = lib.importJSON ../../python/enginix/data/models/engine_classes.json;
  formats = lib.importJSON ../../python/enginix/data/models/number_formats.json;
  families = (lib.importJSON ../../python/enginix/data/models/family_rows.json).architectures;
  inherit (formats) algorithms;
  gpus = (lib.importJSON ../../python/enginix/data/machine/gpus.json).gpus;

  known = algorithm: if algorithm == null then "NO_QUANT" else algorithm;

  # Whether a row of the table takes an SM.
  takes =
    row: sm:
    row.engine
    && (row.minSm == null || sm >= row.minSm)
    && (
      row.refusedSm == null
      || sm < builtins.elemAt row.refusedSm 0
      || sm >= builtins.elemAt row.refusedSm 1
    );

  # Whether a GPU has the formats that an algorithm computes with: gpus.json, beside the table's own
  # SMs.
  lacksNothing =
    row: gpu: builtins.all (f: builtins.elem f (gpu.formats or row.needs)) (row.needs or [ ]);

  # Kernels of the PyTorch backend for a format that a GPU has no hardware for; null for none.
  fallbackOf =
    name: gpu:
    let
      row = formats.fallbacks.${name} or null;
    in
    if
      row == null
      || gpu.sm < row.least
      || gpu.sm >= row.below
      || lacksNothing (algorithms.${name}) gpu && takes algorithms.${name} gpu.sm
    then
      null
    else
      row;

  # Whether a kind of a GPU without the engine path takes a format; Python's twin is
  # python/enginix/quantize/formats.py.
  takenBy =
    kinds: gpu: name:
    let
      row = algorithms.${name};
      takes' = {
        llmapi = row.llmapi != false;
        edgellm = row.edgellm or null != null;
      };
    in
    builtins.any (kind: takes'.${kind} or false) kinds
    && (row.minSm == null || gpu.sm >= row.minSm)
    && lacksNothing row gpu;

  first = list: if list == [ ] then null else builtins.head list;

  # What to do instead: a format for this GPU, as the caller's argument names it, or a GPU for this
  # format.
  ways =
    say: row: algorithm: gpu:
    let
      fits = f: f != algorithm && takes algorithms.${f} gpu.sm;
      format = first (builtins.filter fits support.suggest.formats);
      target = first (builtins.filter (t: takes row gpus.${t}.sm) support.suggest.targets);
    in
    "Use "
    + lib.concatStringsSep ", or " (
      lib.optional (format != null) "${say format} on this GPU"
      ++ lib.optional (target != null) ''target = "${target}"''
    )
    + ".";

  # What a GPU has of number formats, or what its engines take of them.
  describeFormats =
    what: gpu:
    let
      isTaken = f: takes algorithms.${formats.gpuFormats.${f}} gpu.sm;
      taken = builtins.filter isTaken gpu.formats;
    in
    lib.optionalString (gpu ? formats)
      ''${what} for "${gpu.name}" take: ${lib.concatStringsSep ", " taken}.'';

  reason =
    what: row: gpu:
    let
      from = toString (builtins.elemAt row.refusedSm 0);
      to = toString (builtins.elemAt row.refusedSm 1 - 1);
    in
    if !lacksNothing row gpu && takes row gpu.sm then
      ''${what} computes with ${lib.concatStringsSep " and " row.needs}; target "${gpu.name}" has ''
      + ''${lib.concatStringsSep ", " gpu.formats}.''
    else if row.minSm != null && gpu.sm < row.minSm then
      ''${what} needs SM ${toString row.minSm} or later; ''
      + ''target "${gpu.name}" is SM ${toString gpu.sm}.''
    else
      ''TensorRT-LLM's builder refuses ${what} for SM ${from} to ${to}; ''
      + ''target "${gpu.name}" is SM ${toString gpu.sm}.'';

  among = list: value: builtins.elem value list;

  # The name that a checkpoint of an architecture has.
  writtenName = name: families.${name}.writtenAs or name;

  # Why no engine of kind tensorrt can be built of such a name, and what to do; null if one can.
  explainNoEngine =
    architecture:
    if engineClasses.unbuildable ? ${architecture} then
      "TensorRT-LLM 1.1 and 1.2 build no engine of ${architecture}: "
      + "${engineClasses.unbuildable.${architecture}}. Serve the model with transformers."
    else if engineClasses.engine ? ${architecture} then
      null
    else if builtins.elem architecture engineClasses.pytorchOnly then
      "${architecture} has no engine in TensorRT-LLM 1.1 and 1.2, only in its PyTorch backend. "
      + "Use kind = \"llmapi\"."
    else
      "${names.unknown "architecture" architecture (builtins.attrNames engineClasses.engine)} "
      + "Instead: ${llmapiAdvice.limit architecture "serve the model with the llmapi kind"}.";
in
rec {
  # A quantization of an engine of kind tensorrt, against a GPU. The model's architecture is for the
  # error (null for unknown).
  # quantization :: string -> string|null -> string|null -> { name; sm; … } -> string|null
  quantization =
    function: architecture: algorithm: gpu:
    quantizationBy {
      inherit architecture;
      format = format: ''quantization = "${format}"'';
      artefacts = "Engines";
    } function algorithm (kindSupport.require function "tensorrt" gpu null);

  # A quantization against a GPU's formats, for a caller with words of its own, which may not know
  # the kind: format says one as its argument; artefacts are what it makes.
  # quantizationBy :: { architecture; format; artefacts; } -> string -> string|null -> { … } -> string|null
  quantizationBy =
    words: function: algorithm: gpu:
    let
      name = known algorithm;
      kinds = builtins.filter (kind: kind != "reference") (kindSupport.running gpu);
      offers = builtins.filter (takenBy kinds gpu) support.suggest.formats;
      row =
        algorithms.${name}
          or (
            throw "${function}: ${names.unknown "quantization" name (builtins.attrNames algorithms)}"
          );
    in
    if !row.engine then
      throw (
        "${function}: ${name} cannot become an engine: ${row.why}. Instead: ${row.instead}"
        + lib.optionalString (row.llmapi == true) (
          llmapiAdvice.limit words.architecture ", or serve this one with the llmapi kind"
        )
        + "."
      )
    else if kinds == [ ] then
      throw (
        "${function}: no software of NVIDIA's that enginix serves with has code for SM "
        + "${toString gpu.sm} (target \"${gpu.name}\"). Leave target out, and serve the model by "
        + "kind = \"reference\", on a CPU; or name another GPU."
      )
    else if !builtins.elem "tensorrt" kinds then
      # What TensorRT-LLM's builder refuses does not concern it.
      if takenBy kinds gpu name then
        algorithm
      else
        throw (
          "${function}: kind ${lib.concatStringsSep " or " kinds} takes no ${name} on SM "
          + "${toString gpu.sm} (target \"${gpu.name}\"). Use "
          + lib.optionalString (offers != [ ]) "${words.format (builtins.head offers)}, or "
          + "another target."
        )
    else if !takes row gpu.sm || !lacksNothing row gpu then
      throw (
        "${function}: ${reason name row gpu} ${ways words.format row name gpu} "
        + describeFormats words.artefacts gpu
      )
    else
      algorithm;

  # What a runtime of kind llmapi must have where a GPU lacks a format's hardware: TensorRT-LLM's
  # version, and the type of the model's other tensors (null for unknown).
  # fallback :: string -> string|null -> { name; sm; … } -> { id; tensorrtLlm; … }
  #   -> string|null -> string|null
  fallback =
    function: algorithm: gpu: runtime: dtype:
    let
      name = known algorithm;
      row = fallbackOf name gpu;
      reached = builtins.filter (sm: sm <= gpu.sm) (
        map builtins.fromJSON (builtins.attrNames row.since)
      );
      least = builtins.head (builtins.sort (a: b: a > b) reached);
      first = row.since.${toString least};
      needs =
        "SM ${toString gpu.sm} has no hardware for ${name}: ${row.kernels} kernels compute it in "
        + "${row.dtype}, from TensorRT-LLM ${first} on (read in its source, not run)";
    in
    if row == null then
      algorithm
    else if
      runtime.tensorrtLlm or null == null || !kindSupport.isAtLeast runtime.tensorrtLlm first
    then
      throw (
        "${function}: ${needs}. Runtime ${runtime.id} has another: use runtime = "
        + "\"trtllm-${first}\" or a later one, or a GPU with ${name}."
      )
    else if dtype != null && dtype != row.dtype then
      throw (
        "${function}: ${needs}. The model is in ${dtype}: use one in ${row.dtype}, or a GPU with "
        + "${name}."
      )
    else
      lib.warn "${function}: ${needs}." algorithm;

  # A quantization of a backend that compiles nothing ahead: refused where the backend does not take
  # it, or the GPU does not execute it (python/enginix/model/number_formats.py, runs_on_gpu). What
  # no row knows is the runtime's to judge.
  # computes :: string -> string|null -> { name; sm; formats; … } -> string|null
  computes =
    function: algorithm: gpu:
    let
      name = known algorithm;
      row = algorithms.${name} or { };
      executes = g: (row.minSm or null == null || g.sm >= row.minSm) && lacksNothing row g;
      able = builtins.filter (t: executes gpus.${t}) support.suggest.targets;
      orTarget = ''or target = "${lib.concatStringsSep ''" or "'' able}".'';
    in
    if row.llmapi or null == false then
      throw (
        "${function}: TensorRT-LLM's PyTorch backend does not take ${name}: ${row.why}. "
        + "Instead: ${row.instead}."
      )
    else if executes gpu || fallbackOf name gpu != null then
      algorithm
    else if lacksNothing row gpu then
      throw (
        ''${function}: ${name} needs SM ${toString row.minSm} or later; target "${gpu.name}" is ''
        + ''SM ${toString gpu.sm}. Use a model in another format, ${orTarget}''
      )
    else
      throw (
        ''${function}: ${name} computes with ${lib.concatStringsSep " and " row.needs}; target ''
        + ''"${gpu.name}" (SM ${toString gpu.sm}) has ${lib.concatStringsSep ", " gpu.formats}. ''
        + "Use a model quantized to one of these, ${orTarget}"
      );

  # A KV cache format against a GPU's SM.
  # kvCache :: string -> string|null -> string|null -> { name; sm; … } -> string|null
  kvCache =
    function: architecture: format: gpu:
    let
      row =
        formats.kvCache.${format}
          or (throw (
            "${function}: "
            + "${names.unknown "KV cache format" format (builtins.attrNames formats.kvCache)}"
          ));
    in
    if format == null then
      null
    else if !row.engine then
      throw (
        "${function}: an ${format} KV cache cannot be built into an engine: ${row.note}. Use a "
        + "model with an FP8 KV cache or none"
        + "${llmapiAdvice.limit architecture ", or serve this one with the llmapi kind"}."
      )
    else if !takes row gpu.sm then
      throw (
        "${function}: ${reason "an ${format} KV cache" row gpu} Use a model whose KV cache is FP8 "
        + "or not quantized."
      )
    else
      format;

  # Whether an engine of kind tensorrt can be built of an architecture.
  # hasEngine :: string -> bool
  hasEngine = name: explainNoEngine (writtenName name) == null;

  # An architecture of the engine path, by the name that a checkpoint has.
  # architecture :: string -> string|null -> string|null
  architecture =
    function: name:
    let
      reason = explainNoEngine (writtenName name);
    in
    if name == null then
      null
    else if reason == null then
      writtenName name
    else
      throw "${function}: ${reason}";

  # The engine class that TensorRT-LLM maps an architecture to.
  # engineClass :: string|null -> string|null
  engineClass =
    architecture:
    if architecture == null then null else engineClasses.engine.${architecture} or null;

  # Combinations that are built without anybody's tests of them, each with its source.
  # warnings :: { quantization; kvCache; architecture; sm; } -> [ string ]
  warnings =
    facts:
    let
      applies =
        w:
        (!(w ? smFrom) || facts.sm >= w.smFrom)
        && (!(w ? architectures) || among w.architectures facts.architecture)
        && (!(w ? quantizations) || among w.quantizations (known facts.quantization))
        && (!(w ? kvCaches) || among w.kvCaches facts.kvCache);
    in
    map (w: "${w.text} (${lib.concatMapStringsSep "; " (s: support.sources.${s}) w.sources})") (
      builtins.filter (w: applies w.when) support.warnings
    );
}
