# Options of a command -> its words: { name = "x"; json = true; add = [ 1 2 ]; host = null; } ->
# [ "--add" "1" "--add" "2" "--json" "--name" "x" ]. null and false leave an option out.
{ lib }:
let
  wordsOf =
    name: value:
    if value == null || value == false then
      [ ]
    else if value == true then
      [ "--${name}" ]
    else if builtins.isList value then
      builtins.concatMap (wordsOf name) value
    else
      # A path becomes one of the store, as a derivation does.
      [ "--${name}" (if builtins.isPath value then "${value}" else toString value) ];
in
options: builtins.concatLists (lib.mapAttrsToList wordsOf options)
