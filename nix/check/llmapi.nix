# Arguments of TensorRT-LLM's LLM class for the PyTorch backend (data/llmapi/llm_args.json): it
# forbids names that it does not know. Where a runtime's text was not read, what differs from the
# read texts is a warning, and the runtime judges it.
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

  isRead = runtime: builtins.elem runtime table.read;
  texts = lib.concatStringsSep " and " table.read;
  # Refuses, or warns where the text was not read.
  refuse =
    runtime: message: value:
    if isRead runtime then
      throw message
    else
      lib.warn (
        "${message} That is by the texts of ${texts}; the text of ${runtime} was not read, so it "
        + "is passed on unchecked."
      ) value;

  # The fields that an object may have; null where any.
  fieldsOf =
    function: runtime: path: row: value:
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
      refuse runtime (
        "${function}: llmArgs.${path}.${choice.key} = ${builtins.toJSON kind}: "
        + "${choice.refused.${kind}}."
      ) null
    else if named && choice.classes ? ${kind} then
      table.classes.${choice.classes.${kind}}.fields
    else
      refuse runtime (
        "${function}: llmArgs.${path}.${choice.key} = ${builtins.toJSON kind}, but it must be one "
        + "of ${lib.concatStringsSep ", " (builtins.attrNames choice.classes)}."
      ) null;

  # A value, down to the fields of its class (python/enginix/kinds/llmapi/llmapi_engine.py).
  typed =
    function: runtime: path: row: value:
    let
      fields = fieldsOf function runtime path row value;
      key = if row ? dispatch then table.dispatch.${row.dispatch}.key else "";
      one =
        name: inner:
        if name == key then
          inner
        else if !(fields ? ${name}) then
          refuse runtime (
            "${function}: llmArgs.${path}: "
            + "${names.unknown "key" name (builtins.attrNames fields)}"
          ) inner
        else
          typed function runtime "${path}.${name}" fields.${name} inner;
      isMissing = n: (fields.${n}.required or false) && !(value ? ${n});
      missing = builtins.filter isMissing (builtins.attrNames fields);
    in
    if value == null && row.null or false then
      value
    else if !(fits row value) then
      refuse runtime (
        "${function}: llmArgs.${path} = ${builtins.toJSON value}, "
        + "but it must be ${expected row}."
      ) value
    else if fields == null then
      value
    else if missing != [ ] then
      refuse runtime "${function}: llmArgs.${path}.${builtins.head missing} is missing." value
    else
      builtins.mapAttrs one value;
in
{
  # arguments :: string -> string -> set -> set
  arguments =
    function: runtime: given:
    let
      usable = lib.filterAttrs (
        _: row: !isRead runtime || builtins.elem runtime row.runtimes
      ) table.arguments;
      one =
        name: value:
        if table.own ? ${name} then
          throw (
            "${function}: llmArgs.${name}: enginix writes it itself; "
            + "it is ${table.own.${name}}."
          )
        else if builtins.elem name table.tensorrtOnly.names then
          refuse runtime (
            "${function}: llmArgs.${name} is of the TensorRT backend alone; "
            + "leave it out for the kind llmapi."
          ) value
        else if !(usable ? ${name}) then
          refuse runtime (
            "${function}: llmArgs for ${runtime}: "
            + "${names.unknown "argument" name (builtins.attrNames usable)}"
          ) value
        else
          typed function runtime name usable.${name} value;
      valid = builtins.mapAttrs one given;
    in
    builtins.deepSeq valid valid;
}
