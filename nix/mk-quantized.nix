# mkQuantized :: { model, format, calibration, … } -> derivation
#
# A model quantized by NVIDIA ModelOpt: a unified Hugging Face checkpoint, which every later stage
# takes as a model. Pure and on a CPU for small models; on a GPU builder otherwise.
{
  lib,
  pkgs,
  check,
  environment,
  warn,
  ...
}@scope:
let
  artefactMeta = import ./artefact-meta.nix scope;
  gpuAccess = import ./gpu-access.nix scope;
  commandWords = import ./command-words.nix { inherit lib; };
  function = "mkQuantized";
  enginix = import ./quantize-package.nix scope;
  table = lib.importJSON ../python/enginix/data/quantization/quantize.json;
  inherit (lib.importJSON ../python/enginix/data/models/number_formats.json) algorithms;
  names = builtins.attrNames table.formats ++ [ "mixed" ];

  formatOf =
    name:
    if table.refused ? ${name} then
      throw (
        "${function}: format ${name}: ${table.refused.${name}.why}. Use "
        + "${table.refused.${name}.instead}."
      )
    else if !builtins.elem name names then
      throw "${function}: ${check.names.unknown "format" name names}"
    else
      name;

  kvCacheOf =
    name:
    if name == null || table.kvCache ? ${name} then
      name
    else if table.kvCacheRefused ? ${name} then
      throw (
        "${function}: kvCache = \"${name}\": ${table.kvCacheRefused.${name}.why}. Use "
        + "${table.kvCacheRefused.${name}.instead}."
      )
    else
      throw (
        "${function}: "
        + check.names.unknown "KV cache format" name (builtins.attrNames table.kvCache)
      );

  # A format as this function's argument has it.
  sayFormat =
    algorithm:
    let
      has = n: table.formats.${n}.algorithm == algorithm;
      found = builtins.filter has (builtins.attrNames table.formats);
    in
    if found == [ ] then "another format" else ''format = "${builtins.head found}"'';

  # Whether evaluation of a check succeeds.
  passes = e: (builtins.tryEval (builtins.deepSeq e e)).success;

  build =
    {
      # mkHfModel's output, not quantized.
      model,
      # fp8, fp8_pc_pt, nvfp4, int4_awq, w4a8_awq, int8_sq, int8_wo, int4_wo, mixed:
      # data/quantization/quantize.json.
      format,
      # mkCalibration's output; weight-only formats need none.
      calibration ? null,
      # "fp8": quantize the KV cache, too.
      kvCache ? null,
      # mixed: bits a weight, on average over the whole model; and the formats to choose from.
      effectiveBits ? null,
      candidates ? null,
      # The GPU that will serve it: formats that it cannot execute are refused. It changes nothing
      # in the result.
      target ? null,
      # "cpu", "cuda"; null takes the CPU for small models and refuses others.
      device ? null,
      # How a build with device = "cuda" reaches the GPU: "features" in Nix's sandbox, "relaxed"
      # outside of it.
      isolation ? "features",
      # Rows at a time.
      batchSize ? 8,
      name ? "${model.modelName or "model"}-${builtins.replaceStrings [ "_" ] [ "-" ] format}",
    }:
    let
      facts = model.model or { };
      weightBytes = model.weightBytes or 0;
      formatName = quantizable (formatOf format);
      # A format that ModelOpt writes of the model's class, or an error.
      quantizable =
        name:
        let
          inherit (table.architecturesRefused) rows;
          row = rows.${facts.architecture or ""} or { formats = [ ]; };
        in
        if row.formats == null || builtins.elem name row.formats then
          throw (
            "${function}: ${facts.architecture} cannot be quantized to ${name}: ${row.why}. "
            + (
              if row.formats == null then
                "Use mkCheckpoint on the model itself."
              else
                "Choose another format."
            )
          )
        else
          name;
      cache = kvCacheOf kvCache;
      gpu =
        if target == null then
          null
        else
          check.gpus.find function (check.engine.target function target).gpu;
      # True, or an error where the target cannot execute an algorithm.
      requireExecutable =
        algorithm:
        let
          checked = check.target.quantizationBy {
            format = sayFormat;
            artefacts = "Models";
            architecture = facts.architecture or null;
          } function algorithm gpu;
        in
        gpu == null || builtins.seq checked true;

      formatNames =
        if formatName != "mixed" then
          if effectiveBits != null || candidates != null then
            throw "${function}: effectiveBits and candidates are for format = \"mixed\"."
          else
            [ formatName ]
        else if effectiveBits == null then
          throw "${function}: format = \"mixed\" needs a budget, for instance effectiveBits = 6.0."
        else if candidates != null then
          let
            knownFormats = map (
              check.arguments.oneOf function "candidates" table.mixed.allowed
            ) candidates;
          in
          if builtins.all (n: n == builtins.head knownFormats) knownFormats then
            throw (
              "${function}: candidates: format = \"mixed\" chooses among two or more of "
              + "${lib.concatStringsSep ", " table.mixed.allowed}."
            )
          else
            knownFormats
        else
          let
            isCudaOnly = f: builtins.elem f table.mixed.cudaOnly;
            executablePairs = builtins.filter (
              pair:
              builtins.all (f: passes (requireExecutable table.formats.${f}.algorithm)) pair
              && (buildDevice == "cuda" || !builtins.any isCudaOnly pair)
            ) table.mixed.candidates;
          in
          if executablePairs == [ ] then
            throw (
              "${function}: no pair of formats for format = \"mixed\" on ${gpu.name} with device = "
              + "\"${buildDevice}\"; name them as candidates (of "
              + "${lib.concatStringsSep ", " table.mixed.allowed}), or use device = \"cuda\"."
            )
          else
            builtins.head executablePairs;
      rows = map (
        f:
        let
          row = table.formats.${f};
          format = algorithms.${row.algorithm};
        in
        row
        // {
          name = f;
          inherit (format) experts;
          group = format.groupSize;
          bits = format.weightBits;
        }
      ) formatNames;

      gigabytes = bytes: "${toString (bytes / 1000000000)} GB";
      cpuMemory = gigabytes (weightBytes * table.memory.percentOfWeights.cpu / 100);
      buildDevice =
        if device != null then
          check.arguments.oneOf function "device" [
            "cpu"
            "cuda"
          ] device
        else if weightBytes > table.cpu.largestWeightBytes then
          throw ''
            ${function}: ${name}: ${gigabytes weightBytes} of weights are too much for a CPU.
            Do one of these:
              - device = "cuda": on a builder with the system feature `cuda` (docs/how-to/quantize.md)
              - device = "cpu": on the CPU all the same; memory for ${cpuMemory}, and hours''
        else
          "cpu";

      # Columns of the matrices that the lock tells.
      columns = lib.filterAttrs (_: v: v != null) {
        hiddenSize = facts.hiddenSize or null;
        intermediateSize = facts.intermediateSize or null;
      };
      fits =
        row:
        let
          bad = lib.filterAttrs (_: v: row.group != null && lib.mod v row.group != 0) columns;
          first = builtins.head (builtins.attrNames bad);
        in
        if facts.experts or null != null && !row.experts then
          throw (
            "${function}: ${row.name} is for dense models, and ${name} has experts; use fp8 or "
            + "nvfp4."
          )
        else if bad != { } then
          throw (
            "${function}: the model's ${first} is ${toString bad.${first}}, and ${row.name} needs "
            + "a multiple of ${toString row.group}; use fp8 or int8_sq."
          )
        else if
          formatName == "mixed"
          && buildDevice == "cpu"
          && builtins.elem row.name table.mixed.cudaOnly
        then
          throw (
            "${function}: mixed with ${row.name} needs device = \"cuda\": its search runs the "
            + "layers, and ModelOpt emulates ${row.name} on CUDA alone."
          )
        else
          requireExecutable row.algorithm;

      # The command would refuse these only after the model was fetched.
      least = builtins.head (builtins.sort (a: b: a.bits < b.bits) rows);
      budget =
        if formatName != "mixed" then
          null
        else if !(builtins.isFloat effectiveBits || builtins.isInt effectiveBits) then
          throw (
            "${function}: effectiveBits = ${builtins.toJSON effectiveBits}, but it must be a "
            + "number, for instance 6.0."
          )
        else if effectiveBits <= least.bits || effectiveBits >= 16 then
          throw (
            "${function}: effectiveBits = ${builtins.toJSON effectiveBits} is not between "
            + "${toString least.bits} (all ${least.name}) and 16 (none)."
          )
        else
          effectiveBits;

      calibrates = cache != null || builtins.any (row: row.calibrates) rows;
      algorithm =
        if formatName == "mixed" then table.mixed.algorithm else (builtins.head rows).algorithm;
      kvAlgorithm = if cache == null then null else table.kvCache.${cache}.algorithm;

      flags = commandWords (
        {
          inherit calibration;
          format = formatName;
          device = buildDevice;
          batch-size = check.arguments.atLeast function "batchSize" 1 batchSize;
          kv-cache = cache;
        }
        // lib.optionalAttrs (formatName == "mixed") {
          effective-bits = builtins.toJSON budget;
          candidates = lib.concatStringsSep "," formatNames;
        }
      );

      access = gpuAccess function isolation [ "cuda" ];
      checked = builtins.deepSeq [
        (map fits rows)
        (
          if gpu == null then
            null
          else
            check.target.kvCache function (facts.architecture or null) kvAlgorithm gpu
        )
        access
        (
          if model.quantization or null != null then
            throw (
              "${function}: the model is quantized already (${model.quantization}); pass the model "
              + "that it was quantized from."
            )
          else if calibrates && calibration == null then
            throw (
              "${function}: format ${formatName}"
              + lib.optionalString (cache != null) " with a quantized KV cache"
              + " needs calibration = mkCalibration { tokenizer = model; }."
            )
          else
            null
        )
        flags
      ];

      # An estimate of what the files' headers will say: matrices have the format's bits, embeddings
      # stay as they are.
      copies = if facts.tiedEmbeddings or false then 1 else 2;
      embeddingBytes = copies * facts.vocabulary * facts.hiddenSize * 2;
      estimate =
        if
          facts ? vocabulary
          && facts ? hiddenSize
          && weightBytes > embeddingBytes
          && algorithms.${algorithm}.bitsPer128 != null
        then
          embeddingBytes
          + (weightBytes - embeddingBytes) * algorithms.${algorithm}.bitsPer128 / 2048
        else
          0;

      elementBytes = if facts.dtype or null == "float32" then 4 else 2;
      small = weightBytes > 0 && weightBytes / elementBytes < table.kvCacheWarning.parameters;
      withWarning =
        value:
        if cache != null && small then
          warn "${name}: ${table.kvCacheWarning.text}" value
        else
          value;
    in
    builtins.seq (checked true) (
      withWarning (
        pkgs.stdenvNoCC.mkDerivation (
          {
            name = "${name}-quantized";
            buildCommandPath = ./builders/quantize.sh;
            nativeBuildInputs = [ enginix ];
            inherit model environment;
            modelName = name;
            flags = lib.escapeShellArgs flags;
            # A model is data: a path left in its configuration would keep the original's weights
            # for ever.
            allowedReferences = [ ];
            passthru = {
              inherit calibration format kvCache;
              original = model;
              modelName = name;
              repo = model.repo or null;
              revision = model.revision or null;
              license = model.license or null;
              gated = model.gated or false;
              model = facts // {
                quantization = algorithm;
                kvCacheQuantization = kvAlgorithm;
              };
              weightBytes = estimate;
              architecture = model.architecture or null;
              quantization = algorithm;
            };
            meta = artefactMeta model {
              description = "${model.modelName or "model"} quantized to ${formatName}";
            };
          }
          // lib.optionalAttrs (buildDevice == "cuda") access
        )
      )
    );
in
check.arguments.call function build
