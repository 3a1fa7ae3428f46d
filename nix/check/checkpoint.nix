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
}
