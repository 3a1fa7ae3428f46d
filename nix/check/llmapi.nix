# Arguments of TensorRT-LLM's LLM class for the PyTorch backend (data/llm_args.json): it forbids names that it does not know.
{ lib, names, ... }:
let
  table = lib.importJSON ../../python/enginix/data/llm_args.json;

  fits =
    row: value:
    {
      int = builtins.isInt value;
      number = builtins.isInt value || builtins.isFloat value;
      bool = builtins.isBool value;
      string = builtins.isString value;
      enum = builtins.elem value row.choices;
      object = builtins.isAttrs value;
      list = builtins.isList value;
    }
    .${row.type};

  typed =
    function: path: row: value:
    if fits row value then
      value
    else
      throw "${function}: llmArgs.${path} = ${builtins.toJSON value}, but it must be ${
        if row.choices or null != null then "one of ${lib.concatStringsSep ", " row.choices}" else "of type ${row.type}"
      }.";
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
          throw "${function}: llmArgs.${name}: enginix writes it itself; it is ${table.own.${name}}."
        else if builtins.elem name table.tensorrtOnly.names then
          throw "${function}: llmArgs.${name} is of the TensorRT backend alone; leave it out for the kind llmapi."
        else if !(usable ? ${name}) then
          throw "${function}: llmArgs for ${runtime}: ${names.unknown "argument" name (builtins.attrNames usable)}"
        else if name == "kv_cache_config" then
          builtins.mapAttrs (
            key: inner:
            typed function "kv_cache_config.${key}" (table.kv_cache_config.${key}
              or (throw "${function}: llmArgs.kv_cache_config: ${names.unknown "key" key (builtins.attrNames table.kv_cache_config)}")
            ) inner
          ) (typed function name usable.${name} value)
        else
          typed function name usable.${name} value;
      valid = builtins.mapAttrs one given;
    in
    builtins.deepSeq valid valid;
}
