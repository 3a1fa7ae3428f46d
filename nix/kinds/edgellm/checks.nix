# What evaluation knows of TensorRT Edge-LLM: payloads, architectures, formats, options.
# data/edgellm/edgellm.json.
{
  lib,
  check,
  pkgs,
  ...
}:
let
  commandWords = import ../../command-words.nix { inherit lib; };
  data = lib.importJSON ../../../python/enginix/data/edgellm/edgellm.json;
  inherit (lib.importJSON ../../../python/enginix/data/models/number_formats.json) algorithms;
  inherit (lib.importJSON ../../../python/enginix/data/machine/gpus.json) partSystems;
  formats = lib.filterAttrs (_: row: row.edgellm != null) algorithms;
  inherit (pkgs.stdenvNoCC.hostPlatform) system;
  payloadsBySystem = builtins.groupBy (p: p.system) data.payloads;
  systems = builtins.attrNames payloadsBySystem;
  # The SMs that a system's payloads are for, in order: as numbers, since "100" is before "80".
  smsOf =
    payloadSystem:
    builtins.sort (a: b: a < b) (
      map builtins.fromJSON (
        builtins.attrNames (builtins.groupBy (p: toString p.sm) payloadsBySystem.${payloadSystem})
      )
    );
  describe = s: "SM ${lib.concatMapStringsSep ", " toString (smsOf s)} on ${s}";
  supported = lib.concatMapStringsSep ", and for " describe (builtins.sort (a: b: a > b) systems);
  # The kinds that do fit.
  otherKinds =
    gpu:
    lib.concatMapStringsSep " or " (kind: ''kind = "${kind}"'') (
      builtins.filter (kind: kind != "edgellm") (check.kindSupport.running gpu)
    );
in
rec {
  inherit data;

  # The wheel's compiled parts for a GPU.
  # payload :: string -> { name; sm; … } -> [ payload ]
  payload =
    function: gpu:
    let
      # A module with NVIDIA's own CPU is in no machine of another system.
      own = if gpu ? part then partSystems.${gpu.part} or null else null;
      loads = p: p.sm == gpu.sm && (own == null || p.system == own);
      matching = builtins.filter (p: loads p && p.system == system) data.payloads;
      otherSystems = builtins.filter (p: loads p && p.system != system) data.payloads;
      other = builtins.head otherSystems;
      onOther =
        "\n  - build it for ${other.system}: "
        + "the functions of legacyPackages.${other.system} (${other.distribution})";
      lacking =
        if otherSystems != [ ] then
          "TensorRT Edge-LLM ${data.version} has its payload for SM ${toString gpu.sm} (target "
          + "\"${gpu.name}\") on ${other.system} alone, and this is evaluated for ${system}."
        else
          "TensorRT Edge-LLM ${data.version} has no payload for SM ${toString gpu.sm} "
          + "(target \"${gpu.name}\")${lib.optionalString (own != null) " on ${own}"}; "
          + "its wheels have them for ${supported}.";
      override = "(mkLib pkgs).override { edgellm-runtime = … // { plugin = …; }; }";
      # SM 90 has no attention kernels in Edge-LLM's sources either.
      ownPlugin = lib.optionalString (otherSystems == [ ] && builtins.elem gpu.sm data.sourceSms.sms) (
        "\n  - build Edge-LLM's plugin for this GPU from its sources, "
        + "and pass a runtime that carries it: ${override}"
      );
    in
    if matching == [ ] then
      throw ''
        ${function}: ${lacking}
        Do one of these:${lib.optionalString (otherSystems != [ ]) onOther}
          - serve the same model by another kind: ${otherKinds gpu}${ownPlugin}''
    else
      matching;

  # architecture :: string -> string|null -> string|null
  architecture =
    function: name:
    if name == null || data.architectures ? ${name} then
      name
    else
      throw (
        "${function}: "
        + "${check.names.unknown "architecture" name (builtins.attrNames data.architectures)} "
        + "NVIDIA's exporter itself accepts any name and reports success. "
        + "Instead: ${
          lib.optionalString (check.target.hasEngine name) "build an engine of kind tensorrt, or "
        }${check.llmapiAdvice.limit name "serve the model with the llmapi kind"}."
      );

  # A model's format: known to the export's checks, and executed by the GPU.
  # format :: string -> string|null -> { name; sm; … } | null -> string|null
  format =
    function: name: gpu:
    let
      row =
        formats.${name}
          or (throw (
            "${function}: "
            + "${check.names.unknown "quantization" name (builtins.attrNames formats)}"
          ));
      gpuFormats = lib.optionalString (
        gpu ? formats
      ) ", which has ${lib.concatStringsSep ", " gpu.formats}";
    in
    if name == null then
      name
    else if gpu != null && gpu.sm < row.minSm then
      throw (
        ''${function}: ${name} needs SM ${toString row.minSm} or later; ''
        + ''target "${gpu.name}" is SM ${toString gpu.sm}${gpuFormats}. ''
        + ''Use a model quantized to W4A16_AWQ or W8A8_SQ_PER_CHANNEL on this GPU, ''
        + ''or another target.''
      )
    else
      builtins.seq row.minSm name;

  # The exporter ignores an FP8 KV cache beside some formats (number_formats.json, edgellm.kvCache).
  # kvCache :: string -> string|null -> string|null -> string|null
  kvCache =
    function: name: cache:
    if cache != null && name != null && formats ? ${name} && !formats.${name}.edgellm.kvCache then
      throw (
        "${function}: NVIDIA's exporter ignores the ${cache} KV cache of a model in ${name}. "
        + "Quantize it again without kvCache."
      )
    else
      cache;

  # What quantized a model, where it was not ModelOpt; the type that its architecture has; windows
  # that an export would not have.
  # described :: string -> set -> bool
  described =
    function: facts:
    let
      method = facts.quantizationMethod or null;
      row = data.architectures.${facts.architecture or ""} or null;
      # Tokens of each layer; locks of an older enginix lack them.
      windows = facts.attentionWindow or [ ];
      distinct = map builtins.fromJSON (builtins.attrNames (builtins.groupBy toString windows));
    in
    if method != null && method != "modelopt" then
      throw (
        "${function}: the model is quantized by ${method}, and exports are checked for models that "
        + "NVIDIA ModelOpt quantized alone. Use the model that it was made from, with mkQuantized "
        + "(formats ${lib.concatStringsSep ", " (builtins.attrNames formats)})."
      )
    else if row != null && facts.modelType or row.modelType != row.modelType then
      throw (
        "${function}: the model's type is ${facts.modelType}, but ${facts.architecture} has "
        + "${row.modelType}."
      )
    else if windows != [ ] && (row.window or "none" == "none" || builtins.length distinct > 1) then
      throw (
        "${function}: the model has sliding windows of "
        + "${lib.concatMapStringsSep " and " toString distinct} tokens in its layers, and NVIDIA's "
        + "exporter leaves them out or writes one into all. "
        + "Use kind = \"tensorrt\" or \"llmapi\" for this model."
      )
    else
      true;

  # The name of a model, which mkHfModel and mkQuantized attach.
  # modelName :: string -> derivation -> string
  modelName =
    function: model:
    model.modelName or (throw ''
      ${function}: model is neither mkHfModel's output nor mkQuantized's: it has no modelName.
      Pass one of them; or, for a directory of your own, its name too:
        model = pkgs.runCommand "my-model" { } "cp -r ''${./my-model} $out"
          // { modelName = "my-model"; };'');

  # Files of a lock that the exporter refuses to be without, or to see.
  # files :: string -> [ string ]|null -> bool
  files =
    function: names:
    let
      named = builtins.filter (lib.hasPrefix "additional_chat_templates/") names;
    in
    if names == null then
      true
    else if !builtins.any (lib.hasSuffix ".safetensors") names then
      throw (
        "${function}: the lock has no .safetensors file, and the exporter reads no other weights."
      )
    else if !builtins.elem "tokenizer.json" names then
      throw (
        "${function}: the lock has no tokenizer.json, and the runtime reads no other tokenizer. "
        + "Write it with transformers (AutoTokenizer.save_pretrained), and lock that repository."
      )
    else if named != [ ] then
      throw (
        "${function}: the lock has named chat templates (${builtins.head named}), and TensorRT "
        + "Edge-LLM takes one. Lock the model without them (enginix lock --exclude)."
      )
    else
      true;

  # Options of one stage (export, build, serve), typed by the table.
  # options :: string -> string -> set -> set
  options =
    function: stage: given:
    let
      rows = data.${stage};
      where = "${function}: ${stage}";
      typed = {
        bool = builtins.isBool;
        int = builtins.isInt;
        str = builtins.isString;
      };
      one =
        name: value:
        let
          row = rows.${name};
        in
        if !typed.${row.type} value then
          throw "${where}.${name} = ${builtins.toJSON value} is not of type ${row.type}."
        else if row ? choices && !builtins.elem value row.choices then
          throw (
            "${where}.${name} = ${builtins.toJSON value}; one of: "
            + "${lib.concatMapStringsSep ", " toString row.choices}."
          )
        else if row ? least && value < row.least then
          throw "${where}.${name} = ${toString value}, but the least is ${toString row.least}."
        else
          value;
    in
    builtins.mapAttrs one (check.arguments.only where (builtins.attrNames rows) given);

  # Limits of an engine, defaults written out.
  # limits :: string -> set -> set -> set
  limits =
    function: facts: given:
    let
      l = options function "build" (builtins.mapAttrs (_: row: row.default) data.build // given);
      context = facts.context or null;
    in
    if l.maxInputLen > l.maxKvCacheCapacity then
      throw (
        "${function}: limits.maxInputLen = ${toString l.maxInputLen} is beyond maxKvCacheCapacity "
        + "= ${toString l.maxKvCacheCapacity}, which holds prompt and answer."
      )
    else if context != null && given ? maxInputLen && l.maxInputLen > context then
      throw (
        "${function}: limits.maxInputLen = ${toString l.maxInputLen}, "
        + "but the model's context is ${toString context}."
      )
    else
      l;

  # A set of options as words of the enginix command.
  # flags :: string -> set -> [ string ]
  flags =
    stage: given:
    commandWords (
      lib.mapAttrs' (
        name: lib.nameValuePair (lib.removePrefix "--" data.${stage}.${name}.flag)
      ) given
    );
}
