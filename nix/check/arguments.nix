{ lib, names, ... }:
let
  text = {
    fits = builtins.isString;
    is = "a text";
  };
  set = {
    fits = builtins.isAttrs;
    is = "a set such as { name = …; }";
  };
  # A directory that is there already stands for a derivation.
  artefact = {
    fits =
      value:
      builtins.isAttrs value
      || builtins.isPath value
      || builtins.isString value && lib.hasPrefix "/" value;
    is = "an output of this library's functions";
  };
  # Arguments that have one shape in every function.
  shapes =
    lib.genAttrs [
      "converter"
      "device"
      "dtype"
      "format"
      "host"
      "isolation"
      "kvCache"
      "name"
      "profile"
      "revision"
      "strategy"
      "variant"
    ] (_: text)
    // lib.genAttrs [
      "clients"
      "environment"
      "exportOptions"
      "flags"
      "limits"
      "llmArgs"
      "lora"
      "parameters"
      "plugins"
      "routing"
      "servers"
      "speculative"
    ] (_: set)
    // lib.genAttrs [ "checkpoint" "model" "quantized" "server" "tokenizer" ] (_: artefact);
in
rec {
  # A value for an error, whatever its type.
  # describe :: a -> string
  describe =
    value:
    if builtins.isFunction value then
      "a function"
    else if builtins.isPath value then
      "the path ${toString value}"
    else if value.type or null == "derivation" then
      "a derivation"
    else if value == { } then
      "{ }"
    else if builtins.isAttrs value then
      "a set of ${lib.concatStringsSep ", " (builtins.attrNames value)}"
    else if builtins.isList value then
      "a list"
    else
      builtins.toJSON value;

  # Rejects argument names that a function does not have, with the nearest one that it has.
  # only :: string -> [ string ] -> set -> set
  only =
    function: known: args:
    let
      strange = builtins.filter (n: !builtins.elem n known) (builtins.attrNames args);
    in
    if !builtins.isAttrs args then
      throw "${function}: it takes a set such as { name = …; }, not ${describe args}."
    else if strange == [ ] then
      args
    else
      throw "${function}: ${names.unknown "argument" (builtins.head strange) known}";

  # Rejects a set that lacks an argument without a default, or has one of another shape; null is
  # right for an argument with a default.
  # whole :: string -> (set -> a) -> set -> set
  whole =
    function: build: args:
    let
      optional = builtins.functionArgs build;
      missing = builtins.filter (n: !optional.${n} && !(args ? ${n})) (builtins.attrNames optional);
      isWrong =
        n:
        shapes ? ${n}
        && !(shapes.${n}.fits args.${n})
        && !(args.${n} == null && optional.${n} or false);
      wrong = builtins.filter isWrong (builtins.attrNames args);
      first = builtins.head wrong;
    in
    if missing != [ ] then
      throw "${function}: the argument ${builtins.head missing} is missing."
    else if wrong != [ ] then
      throw (
        "${function}: ${first} is ${describe args.${first}}, but it must be ${shapes.${first}.is}."
      )
    else
      args;

  # Calls a function of an attribute set; its pattern is the list of its arguments.
  # call :: string -> (set -> a) -> set -> a
  call =
    function: build: args:
    let
      known = builtins.attrNames (builtins.functionArgs build);
    in
    build (whole function build (only function known args));

  # What another function of this library returned, which has a kind.
  # output :: string -> string -> string -> a -> a
  output =
    function: argument: maker: value:
    if builtins.isAttrs value && builtins.isString (value.kind or null) then
      value
    else
      throw "${function}: ${argument} is ${describe value}, not ${maker}'s output.";

  # One of a list of values.
  # oneOf :: string -> string -> [ string ] -> string -> string
  oneOf =
    function: argument: known: value:
    if builtins.elem value known then
      value
    else if builtins.isString value then
      throw "${function}: ${argument}: ${names.unknown "value" value known}"
    else
      throw (
        "${function}: ${argument} is ${describe value}, but it must be one of "
        + "${lib.concatStringsSep ", " (map toString known)}."
      );

  # A whole number of at least `least`.
  # atLeast :: string -> string -> int -> int -> int
  atLeast =
    function: argument: least: value:
    if builtins.isInt value && value >= least then
      value
    else
      throw (
        "${function}: ${argument} = ${describe value}, but it must be a whole number of at "
        + "least ${toString least}."
      );

  # Minutes, of which a part is one too.
  # minutes :: string -> string -> int|float -> int|float
  minutes =
    function: argument: value:
    if (builtins.isInt value || builtins.isFloat value) && value > 0 then
      value
    else
      throw (
        "${function}: ${argument} = ${describe value}, "
        + "but it must be a number of minutes above 0."
      );

  # A whole number between two, both included.
  # between :: string -> string -> int -> int -> int -> int
  between =
    function: argument: least: most: value:
    if builtins.isInt value && least <= value && value <= most then
      value
    else
      throw (
        "${function}: ${argument} = ${describe value}, but it must be a whole number from "
        + "${toString least} to ${toString most}."
      );
}
