# mkEngine :: { kind, model | checkpoint | quantized, … } -> derivation
#
# An engine, which a server loads. One file a kind in ./engine: same interface, each with its own
# arguments, same passthru.
{ check, ... }@scope:
let
  function = "mkEngine";
  builders = {
    reference = import ./engine/reference.nix scope;
    tensorrt = import ./engine/tensorrt.nix scope;
    llmapi = import ./engine/llmapi.nix scope;
    edgellm = import ./engine/edgellm.nix scope;
  };
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
        "${function}: ${first} is an argument of the kind "
        + "${builtins.concatStringsSep " and " (kindsWith first)}, not of ${kind}; leave it out."
      )
    else
      check.arguments.only function known args;
in
arguments:
let
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
else
  builders.${kind} (builtins.removeAttrs args [ "kind" ])
