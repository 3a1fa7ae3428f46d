# mkEngine :: { kind, model | checkpoint, … } -> derivation
#
# What a server loads. One file a kind in ./engine, all with the same arguments and passthru.
{ check, ... }@scope:
let
  function = "mkEngine";
  kinds = {
    reference = import ./engine/reference.nix scope;
    tensorrt = import ./engine/tensorrt.nix scope;
  };
  known = [
    "kind"
    "model"
    "checkpoint"
    "target"
    "runtime"
    "limits"
    "gates"
    "name"
  ];
in
arguments:
let
  args = check.arguments.only function known arguments;
  kind = check.arguments.oneOf function "kind" (builtins.attrNames kinds) (
    args.kind
      or (throw "${function}: kind is missing. Known: ${builtins.concatStringsSep ", " (builtins.attrNames kinds)}.")
  );
in
if !(args ? model || args ? checkpoint) then
  throw "${function}: pass model (from mkHfModel), or checkpoint (from mkCheckpoint)."
else
  kinds.${kind} (builtins.removeAttrs args [ "kind" ])
