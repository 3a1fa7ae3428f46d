# trtllm-build's options: names, types, what excludes what. data/tensorrt/build_options.json is the
# one table.
{ lib, names, ... }:
let
  table = lib.importJSON ../../python/enginix/data/tensorrt/build_options.json;
  inherit (table) options;

  # Nix's Boolean is the command line's enable or disable.
  spelled = v: if v == true then "enable" else if v == false then "disable" else v;
  valueOf = values: name: spelled (values.${name} or options.${name}.default);

  among = list: value: builtins.elem value list;

  typed =
    function: name: value:
    let
      row = options.${name};
      wrong =
        expected:
        throw (
          "${function}: plugins.${name} = ${builtins.toJSON value}, "
          + "but it must be ${expected}."
        );
      choices = lib.concatStringsSep ", " row.choices;
      listed = row.choices != null;
    in
    if row.type == "switch" || row.type == "bool" then
      if builtins.isBool value then value else wrong "true or false"
    else if row.type == "enum" then
      if among row.choices value then value else wrong "one of ${choices}"
    else if row.type == "int" then
      if builtins.isInt value && value >= 0 && value <= 2147483647 then
        value
      else
        wrong "a whole number"
    else if row.type == "strings" then
      if
        builtins.isList value && (!listed || value != [ ] && builtins.all (among row.choices) value)
      then
        value
      else
        wrong "a list${lib.optionalString listed " of ${choices}"}"
    else
      value;

  known =
    function: runtime: name:
    let
      removal = table.removed.${name};
      isRead = among table.read runtime;
      isUsable = n: !isRead || among options.${n}.runtimes runtime;
      # What a text that was not read may call otherwise.
      told =
        if isRead then
          name
        else
          lib.warn (
            "${function}: plugins.${name}: checked by the text of "
            + "${builtins.elemAt table.read (builtins.length table.read - 1)}; that of ${runtime} "
            + "was not read."
          ) name;
      usable = builtins.filter isUsable (builtins.attrNames options);
    in
    if among usable name then
      told
    else if table.limits ? ${name} then
      throw "${function}: plugins.${name}: pass it as limits.${name}."
    else if table.removed ? ${name} then
      throw (
        "${function}: plugins.${name}: "
        + "${removal.flag} is ${
          if removal.deprecated or false then "deprecated" else "gone"
        } since TensorRT-LLM ${removal.since}."
        + lib.optionalString (removal.instead != null) " Use ${removal.instead}."
      )
    else if table.own ? ${name} then
      throw (
        "${function}: plugins.${name}: enginix writes ${table.own.${name}.flag} itself; it is "
        + "${table.own.${name}.why}."
      )
    else if options ? ${name} then
      throw (
        "${function}: plugins.${name} is unknown to the runtime ${runtime}; it is an option of "
        + "${lib.concatStringsSep ", " options.${name}.runtimes}."
      )
    else
      throw "${function}: plugins: ${names.unknown "option" name usable}";

  named =
    function: runtime: requested:
    let
      option = n: lib.nameValuePair (known function runtime n) (typed function n requested.${n});
      valid = builtins.listToAttrs (map option (builtins.attrNames requested));
    in
    builtins.deepSeq valid valid;

  # What a rule asks for and does not get, or null.
  unmetNeed =
    facts: values: rule:
    let
      needs = rule.needs or { };
      quantization = if facts.quantization == null then "NO_QUANT" else facts.quantization;
      lacksSm =
        needs ? sm
        && (facts.sm < builtins.elemAt needs.sm 0 || facts.sm >= builtins.elemAt needs.sm 1);
      lacksRanks = needs ? tensorParallelFrom && facts.tensorParallel < needs.tensorParallelFrom;
      lacksArchitecture =
        needs ? architectures
        && facts.architecture != null
        && !among needs.architectures facts.architecture;
      lacksEvery =
        rule ? needsAny && builtins.all (o: values.${o} or null == null) rule.needsAny;
      missing =
        lib.optional (needs ? quantizations && !among needs.quantizations quantization)
          (
            "${lib.concatStringsSep " or " (needs.quantizations or [ ])} weights (the model's are "
            + "${quantization})"
          )
        ++ lib.optional lacksSm
          (
            "SM ${toString (builtins.elemAt (needs.sm or [ 0 ]) 0)} (the target is SM "
            + "${toString facts.sm})"
          )
        ++ lib.optional (needs ? smFrom && facts.sm < needs.smFrom)
          "SM ${toString (needs.smFrom or 0)} or later (the target is SM ${toString facts.sm})"
        ++ lib.optional (needs ? notSm && among needs.notSm facts.sm)
          "another GPU than one of SM ${toString facts.sm}"
        ++ lib.optional (needs ? kvCaches && !among needs.kvCaches facts.kvCache)
          (
            "a KV cache in ${lib.concatStringsSep " or " (needs.kvCaches or [ ])} (the model's is "
            + "${if facts.kvCache == null then "not quantized" else facts.kvCache})"
          )
        ++ lib.optional (needs ? notKvCaches && among needs.notKvCaches facts.kvCache)
          "another KV cache than ${toString facts.kvCache}"
        ++ lib.optional lacksRanks
          "tensorParallel of at least ${toString (needs.tensorParallelFrom or 0)}"
        ++ lib.optional lacksArchitecture
          "one of the architectures ${lib.concatStringsSep ", " (needs.architectures or [ ])}"
        ++ lib.optional (needs ? eagleLayers && facts.eagleLayers or null == null)
          "num_eagle_layers in the checkpoint (speculative.eagleLayers)"
        ++ lib.optional (rule ? only && !among rule.only (valueOf values rule.option))
          "one of ${lib.concatStringsSep ", " (rule.only or [ ])}"
        ++ lib.optional lacksEvery
          (lib.concatStringsSep " or " (rule.needsAny or [ ]))
        ++ builtins.filter (o: among [ null "disable" ] (valueOf values o)) (rule.needsOn or [ ])
        ++ lib.optional (needs ? noDraft && (values.maxDraftLen or 0) > 0) "no draft tokens"
        ++ lib.mapAttrsToList (o: v: "${o} = ${v}") (
          lib.filterAttrs (o: v: valueOf values o != v) (rule.needsOption or { })
        );
      isSet =
        if rule ? is then
          valueOf values rule.option == spelled rule.is
        else if rule ? isNot then
          !among [ null rule.isNot ] (valueOf values rule.option)
        else
          values.${rule.option} or null != null;
      inPlay =
        isSet
        && (!(rule.given or false) || values ? ${rule.option})
        && (!(rule ? whenKvCaches) || among rule.whenKvCaches facts.kvCache)
        && (!(rule ? whenQuantizations) || among rule.whenQuantizations quantization)
        && (!(rule ? whenStrategies) || among rule.whenStrategies (facts.strategy or "checkpoint"))
        && builtins.all (o: valueOf values o == rule.whenOption.${o}) (
          builtins.attrNames (rule.whenOption or { })
        );
    in
    if !inPlay then
      null
    else if rule ? refuse then
      rule.refuse
    else if missing == [ ] then
      null
    else
      "it needs ${lib.concatStringsSep " and " missing}; ${rule.why}";

  # Rules in order: a requested option is refused, any other one is turned off.
  applyRules =
    function: facts: requested: values:
    builtins.foldl' (
      current: rule:
      let
        reason = unmetNeed facts current rule;
        off = rule.becomes or (if options.${rule.option}.type == "enum" then "disable" else false);
      in
      if reason == null then
        current
      else if requested ? ${rule.option} then
        throw (
          "${function}: plugins.${rule.option} = ${builtins.toJSON requested.${rule.option}}: "
          + "${reason} (${table.sources.${rule.source}})."
        )
      else
        current // { ${rule.option} = off; }
    ) values table.rules;

  word =
    name: value:
    let
      row = options.${name};
    in
    if row.type == "bool" then
      lib.optional value row.flag
    else if row.type == "strings" then
      [ row.flag ] ++ map toString value
    else
      [
        row.flag
        (toString (spelled value))
      ];
in
{
  # A ready profile: limits and options; both empty for null.
  # profile :: string -> string|null -> { limits; options; }
  profile =
    function: name:
    if name == null then
      {
        limits = { };
        options = { };
      }
    else
      table.profiles.${name}
        or (throw (
          "${function}: ${names.unknown "profile" name (builtins.attrNames table.profiles)}"
        ));

  # The options that reach the command line: the profile's where the target allows them, then what
  # was asked for.
  # resolve :: string -> string -> facts -> set -> set -> set
  resolve =
    function: runtime: facts: profile: requested:
    let
      valid = named function runtime requested;
      always = {
        kvCacheType = "paged";
        usePagedContextFmha = true;
        useFp8ContextFmha = true;
      };
    in
    applyRules function facts valid (always // profile // valid);

  # Names and types of options alone: the checks that need no GPU.
  # valid :: string -> string -> set -> set
  valid = named;

  # flags :: set -> [ string ]
  flags = values: builtins.concatLists (lib.mapAttrsToList word values);
}
