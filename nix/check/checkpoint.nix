{
  lib,
  names,
  arguments,
  llmapiAdvice,
  ...
}:
let
  divisors = n: builtins.filter (d: lib.mod n d == 0) [ 1 2 4 8 16 32 64 ];
  divides = d: n: n == null || lib.mod n d == 0;
  llmapi = "serve this one with the llmapi kind (TensorRT-LLM's PyTorch backend)";
  listSizes = sizes: if sizes == [ ] then "none" else lib.concatMapStringsSep ", " toString sizes;
in
{
  # Whether the reference executor computes an architecture; older locks do not have it.
  # isComputed :: string|null -> bool
  isComputed =
    architecture:
    let
      converters = lib.importJSON ../../python/enginix/data/models/converters.json;
      row = converters.converters.enginix.architectures.${toString architecture} or { };
    in
    row.reference or true;

  # Parallelism against the model's sizes, as far as the lock carries them: what
  # python/enginix/checkpoint/mapping.py refuses from config.json.
  # parallelism :: string -> set -> { tensorParallel; pipelineParallel; expertParallel; } -> set
  parallelism =
    function: model: p:
    let
      heads = model.heads or null;
      kvHeads = model.kvHeads or null;
      layers = model.layers or null;
      experts = model.experts or null;
      tp = arguments.atLeast function "tensorParallel" 1 p.tensorParallel;
      pp = arguments.atLeast function "pipelineParallel" 1 p.pipelineParallel;
      ep = arguments.atLeast function "expertParallel" 1 p.expertParallel;
      width =
        if experts == null then
          model.intermediateSize or null
        else
          model.expertIntermediateSize or (model.intermediateSize or null);
      fits =
        n:
        divides n heads
        && (divides n kvHeads || lib.mod n kvHeads == 0)
        && lib.mod n ep == 0
        && divides (if experts == null then n else n / ep) width;
    in
    if !divides tp heads then
      throw (
        "${function}: tensorParallel = ${toString tp} does not divide the model's "
        + "${toString heads} attention heads. Sizes that do: ${listSizes (divisors heads)}."
      )
    else if layers != null && pp > layers then
      throw (
        "${function}: pipelineParallel = ${toString pp}, "
        + "but the model has ${toString layers} layers."
      )
    else if lib.mod tp ep != 0 then
      throw (
        "${function}: expertParallel = ${toString ep} does not divide tensorParallel = "
        + "${toString tp}. Sizes that do: ${listSizes (divisors tp)}."
      )
    else if ep != 1 && experts == null && heads != null then
      throw "${function}: expertParallel = ${toString ep}, but the model has no experts."
    else if !divides ep experts then
      throw (
        "${function}: expertParallel = ${toString ep} does not divide the model's "
        + "${toString experts} experts. Sizes that do: ${listSizes (divisors experts)}."
      )
    else if !fits tp then
      throw (
        "${function}: tensorParallel = ${toString tp} does not fit ${toString kvHeads} KV heads "
        + "and an intermediate size of ${toString width}. Sizes that do: "
        + "${listSizes (builtins.filter fits (builtins.genList (n: n + 1) 64))}."
      )
    else
      {
        tensorParallel = tp;
        pipelineParallel = pp;
        expertParallel = ep;
      };

  # GPUs of a node: the ranks are on one, or fill several, so that no two ranks share a GPU
  # (python/enginix/checkpoint/mapping.py).
  # nodes :: string -> { tensorParallel; pipelineParallel; } -> int -> int
  nodes =
    function: p: value:
    let
      each = arguments.between function "gpusPerNode" 1 999 value;
      world = p.tensorParallel * p.pipelineParallel;
      several = builtins.filter (n: lib.mod world n == 0) (builtins.genList (n: n + 1) (world - 1));
      below = world / each * each;
      mismatch =
        "gpusPerNode = ${toString each}, but tensorParallel ${toString p.tensorParallel} × "
        + "pipelineParallel ${toString p.pipelineParallel} = ${toString world} ranks neither fit "
        + "one node of ${toString each} GPUs nor fill several.";
    in
    if world <= each || lib.mod world each == 0 then
      each
    else
      throw ''
        ${function}: ${mismatch}
        Do one of these:
          - serve on one node: gpusPerNode = ${toString world}
          - serve on several: gpusPerNode = ${lib.concatMapStringsSep " or " toString several}
          - make other ranks: ${toString below} or ${toString (below + each)} of them'';

  # The model's quantization, where the lock has it: what python/enginix/model/quantization.py
  # refuses. Locks have names in capitals, whatever the model has.
  # quantization :: string -> set -> { model; quantization; } -> string | null
  quantization =
    function: table: m:
    let
      inherit (table) algorithms methods;
      declared =
        if m.quantization or null != null then m.quantization else m.model.quantization or null;
      lower = if declared == null then null else lib.toLower declared;
      named = row: name: builtins.any (n: lib.toLower n == lower) ([ name ] ++ row.aliases);
      matches = builtins.filter (n: named algorithms.${n} n) (builtins.attrNames algorithms);
      algorithm = builtins.head matches;
      row = algorithms.${algorithm};
      # Of config.json, where there is no file of ModelOpt's. Older locks do not have it.
      declaredMethod = m.model.quantizationMethod or null;
      method =
        if declaredMethod != null then
          declaredMethod
        else if matches == [ ] && lower != null && methods ? ${lower} then
          lower
        else
          null;
      foreign = methods.${method} or methods."*";
      refuse =
        what: why: instead:
        throw (
          "${function}: ${what} cannot become a TensorRT-LLM checkpoint: "
          + "${why}. Instead: ${advise instead}."
        );
      advise = llmapiAdvice.limit (m.model.architecture or null);
      usable = builtins.filter (n: algorithms.${n}.convert) (builtins.attrNames algorithms);
      cache = m.model.kvCacheQuantization or null;
    in
    if !builtins.elem method [ null "modelopt" ] then
      refuse "quantization method ${method}" foreign.why foreign.instead
    else if cache != null && cache != "FP8" then
      throw (
        "${function}: KV cache quantization ${cache} has no place in a checkpoint from a Hugging "
        + "Face model; quantize the KV cache to FP8, or not at all."
      )
    else if declared == null || lower == "modelopt" then
      null
    else if matches == [ ] then
      throw (
        "${function}: quantization ${declared} is unknown; quantize with ModelOpt to one of: "
        + advise "${lib.concatStringsSep ", " usable}; or ${llmapi}."
      )
    else if !row.convert then
      refuse "quantization ${algorithm}" row.why (
        row.instead + lib.optionalString (row.llmapi == true && !row.engine) ", or ${llmapi}"
      )
    else if row.experts == false && m.model.experts or null != null then
      throw (
        "${function}: ${algorithm} is for dense models, and this one has "
        + "${toString m.model.experts} experts; quantize it to FP8 or NVFP4."
      )
    else
      algorithm;

  # The architecture, where the lock carries it.
  # architecture :: string -> [ string ] -> set -> set
  architecture =
    function: known: model:
    if model ? architecture && !builtins.elem model.architecture known then
      throw "${function}: ${names.unknown "architecture" model.architecture known}"
    else
      model;

  # Options of an architecture that converter = "enginix" reads by a row of family_rows.json: what
  # python/enginix/checkpoint/mapping.py refuses from config.json.
  # family :: string -> set -> { model; quantization; variant; parallel; } -> string | null
  family =
    function: table: m:
    let
      rows = table.architectures;
      name = m.model.architecture or "";
      row = rows.${rows.${name}.sameAs or name};
      tp = m.parallel.tensorParallel;
      reject = what: key: throw "${function}: ${what}: ${name} does not take it; ${row.${key}}.";
      rowsOfTheMlp = m.model.intermediateSize / (row.layout.widthDivisor or 1);
    in
    if !rows ? ${name} then
      if m.variant == null || name == "" then
        m.variant
      else
        throw "${function}: variant = \"${m.variant}\", but ${name} has none; leave it out."
    else if
      m.quantization or null != null && !builtins.elem m.quantization (row.formats or [ ])
    then
      throw (
        "${function}: converter = \"enginix\" converts ${name} "
        + lib.concatStringsSep "" (map (format: "in ${format}, ") (row.formats or [ ]))
        + "unquantized only; this model is "
        + "${m.quantization}. "
        + llmapiAdvice.limit name "Pass the unquantized model, or ${llmapi}."
      )
    else if m.parallel.pipelineParallel > 1 && row ? pipeline then
      reject "pipelineParallel = ${toString m.parallel.pipelineParallel}" "pipeline"
    else if row ? vocabulary && !divides tp (m.model.vocabulary or null) then
      reject (
        "tensorParallel = ${toString tp} with a vocabulary of ${toString m.model.vocabulary}"
      ) "vocabulary"
    else if row ? kvReplication && (m.model.kvHeads or tp) < tp then
      reject (
        "tensorParallel = ${toString tp} with ${toString m.model.kvHeads} KV heads"
      ) "kvReplication"
    else if m.model ? intermediateSize && !divides tp rowsOfTheMlp then
      throw (
        "${function}: tensorParallel = ${toString tp} does not divide "
        + "${toString rowsOfTheMlp} rows of the MLP."
      )
    else if m.variant == null then
      null
    else
      arguments.oneOf function "variant" (row.variants.names or [ ]) m.variant;

  # The converter's row for the model's architecture, where the lock carries that.
  # converter :: string -> set -> string -> { model; quantization; parallel; } -> set
  converter =
    function: table: converterName: m:
    let
      inherit (table) converters;
      choices = builtins.attrNames converters;
      chosen = converters.${arguments.oneOf function "converter" choices converterName};
      known = builtins.attrNames chosen.architectures;
      name = m.model.architecture or "";
      capable = builtins.filter (c: converters.${c}.architectures ? ${name}) choices;
      offer = c: "converter = \"${c}\" (${converters.${c}.runsOn})";
      row = chosen.architectures.${name} or { };
      most = row.maxTensorParallel or null;
      # transformers loads a model by its model_type.
      type = m.model.modelType or null;
      inherit (lib.importJSON ../../python/enginix/data/models/architectures.json) architectures;
      families = (lib.importJSON ../../python/enginix/data/models/family_rows.json).architectures;
      family = families.${families.${name}.sameAs or name}.modelTypes or [ type ];
      types = architectures.${name}.modelTypes or family;
    in
    if name != "" && !builtins.elem name known then
      if capable != [ ] then
        throw (
          "${function}: converter = \"${converterName}\" does not take ${name}; "
          + "${lib.concatMapStringsSep " and " offer capable} does. "
          + "\"${converterName}\" takes: ${lib.concatStringsSep ", " known}."
        )
      else if table.refused ? ${name} then
        throw "${function}: no converter takes ${name}: ${table.refused.${name}}."
      else
        throw "${function}: ${names.unknown "architecture" name known}"
    else if type != null && !builtins.elem type types then
      throw (
        "${function}: the model's architecture is ${name} and its model_type is ${type}, "
        + "another class; ${name} has ${lib.concatStringsSep " or " types}. "
        + "Use a model whose config.json agrees with itself."
      )
    else if converterName == "enginix" then
      row
    else if m.quantization or null != null then
      throw (
        "${function}: converter = \"${converterName}\" converts unquantized models; "
        + "this one is ${m.quantization}."
      )
    else if m.parallel.pipelineParallel != 1 || m.parallel.expertParallel != 1 then
      throw (
        "${function}: converter = \"${converterName}\" offers tensorParallel only; "
        + "leave pipelineParallel and expertParallel at 1."
      )
    else if most != null && m.parallel.tensorParallel > most then
      throw (
        "${function}: tensorParallel = ${toString m.parallel.tensorParallel}, but converter = "
        + "\"${converterName}\" takes ${name} with at most ${toString most}."
      )
    else
      row;
}
