{
  lib,
  names,
  arguments,
  ...
}:
let
  divisors = n: builtins.filter (d: lib.mod n d == 0) [ 1 2 4 8 16 32 64 ];
in
{
  # Parallelism against the model's sizes, as far as the lock carries them.
  # parallelism :: string -> set -> { tensorParallel; pipelineParallel; expertParallel; } -> set
  parallelism =
    function: model: p:
    let
      heads = model.heads or null;
      layers = model.layers or null;
      tp = arguments.atLeast function "tensorParallel" 1 p.tensorParallel;
      pp = arguments.atLeast function "pipelineParallel" 1 p.pipelineParallel;
      ep = arguments.atLeast function "expertParallel" 1 p.expertParallel;
    in
    if heads != null && lib.mod heads tp != 0 then
      throw "${function}: tensorParallel = ${toString tp} does not divide the model's ${toString heads} attention heads. Sizes that do: ${lib.concatMapStringsSep ", " toString (divisors heads)}."
    else if layers != null && pp > layers then
      throw "${function}: pipelineParallel = ${toString pp}, but the model has ${toString layers} layers."
    else if lib.mod tp ep != 0 then
      throw "${function}: expertParallel = ${toString ep} does not divide tensorParallel = ${toString tp}. Sizes that do: ${lib.concatMapStringsSep ", " toString (divisors tp)}."
    else
      {
        tensorParallel = tp;
        pipelineParallel = pp;
        expertParallel = ep;
      };

  # The architecture, where the lock carries it.
  # architecture :: string -> [ string ] -> set -> set
  architecture =
    function: known: model:
    if model ? architecture && !builtins.elem model.architecture known then
      throw "${function}: ${names.unknown "architecture" model.architecture known}"
    else
      model;

  # The converter's row for the model's architecture, where the lock carries that.
  # converter :: string -> set -> string -> { model; quantization; parallel; } -> set
  converter =
    function: table: wanted: m:
    let
      inherit (table) converters;
      chosen = converters.${arguments.oneOf function "converter" (builtins.attrNames converters) wanted};
      known = builtins.attrNames chosen.architectures;
      name = m.model.architecture or "";
      takers = builtins.filter (c: converters.${c}.architectures ? ${name}) (builtins.attrNames converters);
      row = chosen.architectures.${name} or { };
      most = row.maxTensorParallel or null;
    in
    if name != "" && !builtins.elem name known then
      if takers != [ ] then
        throw "${function}: converter = \"${wanted}\" does not take ${name}; ${
          lib.concatMapStringsSep " and " (c: "converter = \"${c}\" (${converters.${c}.runsOn})") takers
        } does. \"${wanted}\" takes: ${lib.concatStringsSep ", " known}."
      else if table.refused ? ${name} then
        throw "${function}: no converter takes ${name}: ${table.refused.${name}}."
      else
        throw "${function}: ${names.unknown "architecture" name known}"
    else if wanted == "enginix" then
      row
    else if m.quantization or null != null then
      throw "${function}: converter = \"${wanted}\" converts unquantized models; this one is ${m.quantization}."
    else if m.parallel.pipelineParallel != 1 || m.parallel.expertParallel != 1 then
      throw "${function}: converter = \"${wanted}\" offers tensorParallel only; leave pipelineParallel and expertParallel at 1."
    else if most != null && m.parallel.tensorParallel > most then
      throw "${function}: tensorParallel = ${toString m.parallel.tensorParallel}, but converter = \"${wanted}\" takes ${name} with at most ${toString most}."
    else
      row;
}
