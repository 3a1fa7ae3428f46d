# Which GPUs the software of a kind has code for: data/machine/engine_kinds.json, as
# python/enginix/machine/kind_support.py reads it.
{ lib, ... }:
let
  table = lib.importJSON ../../python/enginix/data/machine/engine_kinds.json;
  inherit (lib.importJSON ../../python/enginix/data/machine/gpus.json) partSystems;
  inherit (table) kinds;
  among = lib.concatMapStringsSep ", " toString;

  # Whether a kind's software has code for a GPU, on a system that may have it. An SM that the table
  # does not have is left to the PyTorch backend to judge.
  hasCode =
    kind: gpu:
    let
      own = partSystems.${gpu.part or "other"} or null;
      inherit (kinds.${kind}) sms;
      fits = system: (own == null || own == system) && builtins.elem gpu.sm sms.${system};
    in
    sms == null
    || kind == "llmapi" && gpu.unlisted or false
    || builtins.any fits (builtins.attrNames sms);

  # "1.3.0rc20" is before "1.3.0".
  isAtLeast =
    version: least:
    let
      comparable = builtins.replaceStrings [ "rc" ] [ "pre" ];
    in
    builtins.compareVersions (comparable version) (comparable least) >= 0;
in
rec {
  inherit isAtLeast;

  # The kinds whose software has code for a GPU.
  # running :: { name; sm; … } -> [ string ]
  running = gpu: builtins.filter (kind: hasCode kind gpu) table.order;

  # Why a kind does not run on a GPU, with what to do; null if it does. `version` is of
  # TensorRT-LLM, null for any.
  # explain :: string -> { name; sm; … } -> string|null -> string|null
  explain =
    kind: gpu: version:
    let
      first = kinds.${kind}.since.${toString gpu.sm} or null;
      sms = builtins.concatLists (builtins.attrValues kinds.${kind}.sms);
      known = builtins.sort builtins.lessThan (
        map builtins.fromJSON (builtins.attrNames (lib.genAttrs (map toString sms) (_: null)))
      );
      rows = builtins.filter (row: builtins.elem gpu.sm row.sms) table.withoutTensorrtLlm;
      which = lib.optionalString (kind == "tensorrt" || kind == "llmapi") (
        lib.concatMapStringsSep "" (row: ", which ${row.why}") rows
      );
      others = lib.concatMapStringsSep " or " (k: "\"${k}\"") (running gpu);
      systems = builtins.filter (system: builtins.elem gpu.sm kinds.${kind}.sms.${system}) (
        builtins.attrNames kinds.${kind}.sms
      );
    in
    if hasCode kind gpu && (version == null || first == null || isAtLeast version first) then
      null
    else if hasCode kind gpu then
      "kind ${kind} runs on SM ${toString gpu.sm} (target \"${gpu.name}\") from TensorRT-LLM "
      + "${first} on, not with ${version}. Use runtime \"trtllm-${first}\" or a later one."
    else if systems != [ ] then
      "kind ${kind} runs on SM ${toString gpu.sm} with ${lib.concatStringsSep " and " systems} "
      + "alone; target \"${gpu.name}\" has ${partSystems.${gpu.part}}. Use kind ${others}, or "
      + "another GPU."
    else
      "kind ${kind} runs on SM ${among known}; target \"${gpu.name}\" is SM "
      + "${toString gpu.sm}${which}. Use kind ${others}, or another GPU.";

  # What to say where a GPU has a CPU that the evaluated system is not for; [ ] for any other.
  # otherSystem :: { name; part ? …; } -> string -> [ string ]
  otherSystem =
    gpu: system:
    let
      own = partSystems.${gpu.part or "other"} or null;
    in
    lib.optional (own != null && own != system) (
      "${gpu.name} has ${own}, and this is evaluated for ${system}: no builder of ${system} has "
      + "the GPU; take the functions of legacyPackages.${own}"
    );

  # The GPU, or a refusal.
  # require :: string -> string -> { name; sm; … } -> string|null -> { … }
  require =
    function: kind: gpu: version:
    let
      refusal = explain kind gpu version;
    in
    if refusal == null then gpu else throw "${function}: ${refusal}";
}
