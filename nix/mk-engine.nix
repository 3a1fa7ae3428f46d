# mkEngine :: { kind, model | checkpoint | quantized, … } -> derivation
#
# An engine, which a server loads. A folder a kind in ./kinds: same interface, each with its own
# arguments, same passthru.
{ check, ... }@scope:
let
  function = "mkEngine";
  builders = builtins.mapAttrs (_: kind: kind.build scope) (import ./kinds);
  kinds = builtins.attrNames builders;
  argumentsOf = kind: [ "kind" ] ++ builtins.attrNames (builtins.functionArgs builders.${kind});

  # Refuses unknown arguments; the error names the other kinds that have the argument.
  requireOwnArguments =
    kind: args:
    let
      known = argumentsOf kind;
      kindsWith = name: builtins.filter (other: builtins.elem name (argumentsOf other)) kinds;
      foreign = builtins.filter (name: !builtins.elem name known && kindsWith name != [ ]) (
        builtins.attrNames args
      );
      first = builtins.head foreign;
    in
    if foreign != [ ] then
      throw (
        "${function}: ${first} is an argument of the kind"
        + (if builtins.length (kindsWith first) == 1 then " " else "s ")
        + "${builtins.concatStringsSep ", " (kindsWith first)}, not of ${kind}; "
        + (
          if first == "target" && builtins.elem "targets" known then
            "pass targets = [ GPU ], since one engine is for several."
          else
            "leave it out."
        )
      )
    else
      check.arguments.only function known args;
in
given:
let
  arguments =
    if builtins.isAttrs given then given else check.arguments.only function [ "kind" ] given;
  kind = check.arguments.oneOf function "kind" kinds (
    arguments.kind
      or (throw "${function}: kind is missing. Known: ${builtins.concatStringsSep ", " kinds}.")
  );
  args = requireOwnArguments kind arguments;
in
if !(args ? model || args ? checkpoint || args ? quantized) then
  throw (
    "${function}: pass model (from mkHfModel), quantized (from mkQuantized), or checkpoint "
    + "(from mkCheckpoint)."
  )
else if args ? model && args ? quantized then
  throw (
    "${function}: pass model or quantized, not both: the engine is made of one of them. The gates "
    + "compare quantized with the model that it was made from."
  )
else
  builders.${kind} (
    check.arguments.whole "${function} { kind = \"${kind}\"; }" builders.${kind} (
      builtins.removeAttrs args [ "kind" ]
    )
  )
