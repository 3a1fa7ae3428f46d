# Options of a program that a user adds by their own names, over a table of theirs: name -> { type;
# } with since, the first version that has it; own or refused, why it is not to be set; repeatable.
{ lib, names, ... }:
let
  takes =
    program: row:
    {
      bool = "true or false";
      int = "a whole number";
      float = "a number";
      string = "a text";
      switch = "true";
    }
    .${row.type};

  fits =
    program: row: value:
    {
      bool = builtins.isBool value;
      int = builtins.isInt value && value >= 0;
      float = builtins.isInt value || builtins.isFloat value;
      string = builtins.isString value && value != "";
      switch = value == true;
    }
    .${row.type};
in
{
  # Words of enginix serve. program: where, the function for errors; name and it, the program's name
  # in errors; option, that takes NAME=VALUE.
  # words :: { where; name; it; option; } -> rows -> string -> set -> [ string ]
  words =
    program: rows: version: given:
    let
      isKnown = row: builtins.compareVersions version (row.since or "0") >= 0;
      known = lib.filterAttrs (_: isKnown) rows;
      wordsOf =
        name: value:
        let
          row =
            known.${name}
              or (throw (
                "${program.where}: flags: ${program.name} ${version}: "
                + "${names.unknown "option" name (builtins.attrNames known)}"
              ));
          text = if builtins.isString value then value else builtins.toJSON value;
        in
        if row ? own then
          throw (
            "${program.where}: flags.${name}: enginix writes it itself: "
            + "${row.own}; leave it out."
          )
        else if row ? refused then
          throw "${program.where}: flags.${name}: ${row.refused}; leave it out."
        else if row.repeatable or false && builtins.isList value then
          builtins.concatMap (wordsOf name) value
        else if !fits program row value then
          throw (
            "${program.where}: flags.${name} = ${builtins.toJSON value}, "
            + "but ${program.it} takes ${takes program row}."
          )
        else
          [
            program.option
            (if row.type == "switch" then name else "${name}=${text}")
          ];
    in
    builtins.concatLists (lib.mapAttrsToList wordsOf given);
}
