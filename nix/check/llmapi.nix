# Arguments of TensorRT-LLM's LLM class for the PyTorch backend (data/llmapi/llm_args.json): it
# forbids names that it does not know.
{ lib, names, ... }:
let
  table = lib.importJSON ../../python/enginix/data/llmapi/llm_args.json;

  fits =
    row: value:
    let
      whole = builtins.isInt value;
      within = v: (row.least or v) <= v && v <= (row.most or v);
      item =
        if row.items == "int" then
          fits (row // { type = "int"; })
        else
          fits {
            type = "list";
            items = "int";
          };
    in
    {
      int = whole && within value;
      number = (whole || builtins.isFloat value) && within value;
      bool = builtins.isBool value;
      string = builtins.isString value;
      enum = builtins.isString value && builtins.elem value row.choices;
      object = builtins.isAttrs value;
      any = builtins.isAttrs value || builtins.isString value;
      list =
        builtins.isList value
        && (value != [ ] || !(row.filled or false))
        && builtins.all item value;
    }
    .${row.type};

  expected =
    row:
    if row.type == "enum" then
      "one of ${lib.concatStringsSep ", " row.choices}"
    else
      "of type ${row.type}"
      + lib.optionalString (row ? least) ", at least ${toString row.least}"
      + lib.optionalString (row ? most) ", at most ${toString row.most}";

  # The fields that an object may have; null where any.
  fieldsOf =
    function: path: row: value:
    let
      choice = table.dispatch.${row.dispatch};
      kind = value.${choice.key} or null;
      named = builtins.isString kind;
    in
    if row ? class then
      table.classes.${row.class}.fields
    else if !(row ? dispatch) then
      null
    else if named && choice.refused ? ${kind} then
      throw (
        "${function}: llmArgs.${path}.${choice.key} = ${builtins.toJSON kind}: "
        + "${choice.refused.${kind}}."
      )
    else if named && choice.classes ? ${kind} then
      table.classes.${choice.classes.${kind}}.fields
    else
      throw (
        "${function}: llmArgs.${path}.${choice.key} = ${builtins.toJSON kind}, but it must be one "
        + "of ${lib.concatStringsSep ", " (builtins.attrNames choice.classes)}."
      );

  # A value, down to the fields of its class (python/enginix/kinds/llmapi/llmapi_engine.py).
  typed =
    function: runtime: path: row: value:
    let
      fields = fieldsOf function path row value;
      key = if row ? dispatch then table.dispatch.${row.dispatch}.key else "";
      unread = lib.optionalString (builtins.elem runtime table.unread)
        " (Names of the 1.1/1.2 era: the text of ${runtime} was not read.)";
      one =
        name: inner:
        if name == key then
          inner
        else
          typed function runtime "${path}.${name}" (fields.${name}
            or (throw (
              "${function}: llmArgs.${path}: "
              + "${names.unknown "key" name (builtins.attrNames fields)}${unread}"
            ))
          ) inner;
      isMissing = n: (fields.${n}.required or false) && !(value ? ${n});
      missing = builtins.filter isMissing (builtins.attrNames fields);
    in
    if value == null && row.null or false then
      value
    else if !(fits row value) then
      throw (
        "${function}: llmArgs.${path} = ${builtins.toJSON value}, "
        + "but it must be ${expected row}."
      )
    else if fields == null then
      value
    else if missing != [ ] then
      throw "${function}: llmArgs.${path}.${builtins.head missing} is missing."
    else
      builtins.mapAttrs one value;
in
{
  # arguments :: string -> string -> set -> set
  arguments =
    function: runtime: given:
    let
      usable = lib.filterAttrs (_: row: builtins.elem runtime row.runtimes) table.arguments;
      one =
        name: value:
        if table.own ? ${name} then
          throw (
            "${function}: llmArgs.${name}: enginix writes it itself; "
            + "it is ${table.own.${name}}."
          )
        else if builtins.elem name table.tensorrtOnly.names then
          throw (
            "${function}: llmArgs.${name} is of the TensorRT backend alone; "
            + "leave it out for the kind llmapi."
          )
        else if !(usable ? ${name}) then
          throw (
            "${function}: llmArgs for ${runtime}: "
            + "${names.unknown "argument" name (builtins.attrNames usable)}"
          )
        else
          typed function runtime name usable.${name} value;
      valid = builtins.mapAttrs one given;
    in
    builtins.deepSeq valid valid;
}
