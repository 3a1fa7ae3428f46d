# mkEngine :: { kind, model | checkpoint | quantized, … } -> derivation
#
# What a server loads. A folder a kind in ./kinds: same interface, each with its own arguments, same passthru.
{ check, ... }@scope:
let
  function = "mkEngine";
  inputs = [
    "kind"
    "model"
    "checkpoint"
    "quantized"
    "target"
    "runtime"
    "limits"
    "gates"
    "name"
  ];
  kinds = import ./kinds;
  names = builtins.attrNames kinds;

  # An argument of another kind says whose it is.
  foreign =
    kind: args:
    let
      own = inputs ++ kinds.${kind}.arguments;
      elsewhere = n: builtins.filter (k: builtins.elem n kinds.${k}.arguments) names;
      strange = builtins.filter (n: !builtins.elem n own && elsewhere n != [ ]) (builtins.attrNames args);
      n = builtins.head strange;
    in
    if strange != [ ] then
      throw "${function}: ${n} is an argument of the kind ${builtins.concatStringsSep " and " (elsewhere n)}, not of ${kind}; leave it out."
    else
      check.arguments.only function own args;
in
arguments:
let
  kind = check.arguments.oneOf function "kind" names (
    arguments.kind or (throw "${function}: kind is missing. Known: ${builtins.concatStringsSep ", " names}.")
  );
  args = foreign kind arguments;
in
if !(args ? model || args ? checkpoint || args ? quantized) then
  throw "${function}: pass model (from mkHfModel), quantized (from mkQuantized), or checkpoint (from mkCheckpoint)."
else
  kinds.${kind}.build scope (builtins.removeAttrs args [ "kind" ])
