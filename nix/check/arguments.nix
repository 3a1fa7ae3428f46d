{ lib, names, ... }:
rec {
  # Rejects argument names that a function does not have, with the nearest one that it has.
  # only :: string -> [ string ] -> set -> set
  only =
    function: known: args:
    let
      strange = builtins.filter (n: !builtins.elem n known) (builtins.attrNames args);
    in
    if strange == [ ] then
      args
    else
      throw "${function}: ${names.unknown "argument" (builtins.head strange) known}";

  # Calls a function of an attribute set; its pattern is the list of its arguments.
  # call :: string -> (set -> a) -> set -> a
  call =
    function: build: args:
    build (only function (builtins.attrNames (builtins.functionArgs build)) args);

  # One of a list of values.
  # oneOf :: string -> string -> [ string ] -> string -> string
  oneOf =
    function: argument: known: value:
    if builtins.elem value known then
      value
    else
      throw "${function}: ${argument}: ${names.unknown "value" (toString value) known}";

  # A whole number of at least `least`.
  # atLeast :: string -> string -> int -> int -> int
  atLeast =
    function: argument: least: value:
    if builtins.isInt value && value >= least then
      value
    else
      throw "${function}: ${argument} = ${builtins.toJSON value}, but it must be a whole number of at least ${toString least}.";

  # Minutes, of which a part is one too.
  # minutes :: string -> string -> int|float -> int|float
  minutes =
    function: argument: value:
    if (builtins.isInt value || builtins.isFloat value) && value > 0 then
      value
    else
      throw "${function}: ${argument} = ${builtins.toJSON value}, but it must be a number of minutes above 0.";

  # A whole number between two, both included.
  # between :: string -> string -> int -> int -> int -> int
  between =
    function: argument: least: most: value:
    if builtins.isInt value && least <= value && value <= most then
      value
    else
      throw "${function}: ${argument} = ${builtins.toJSON value}, but it must be a whole number from ${toString least} to ${toString most}.";
}
