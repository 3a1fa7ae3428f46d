# GPUs by the names that people write, and any other by its SM and memory: what
# python/enginix/machine/gpu_table.py reads, too. tests/python/engine_tensorrt/test_twin_gpus.py
# holds the two together.
{
  lib,
  names,
  arguments,
  ...
}:
let
  table = lib.importJSON ../../python/enginix/data/machine/gpus.json;

  inherit (table.names) noise separators;

  isNoise = word: builtins.elem word noise;

  # A word and what is glued to it: "rtx2080ti" -> [ "rtx" "2080" "ti" ], "80g" -> [ "80gb" ].
  splitWord =
    word:
    let
      size = builtins.match "([0-9]+)(g|gib)" word;
      glued = builtins.match "(rtx|gtx)(pro|a?[0-9])(.*)" word;
      number = builtins.match "(a?[0-9]{4})(ti|super|ada|laptop|d)(.*)" word;
      board = builtins.match "([a-z]+[0-9]+)(sxm[0-9]?|pcie|nvl)" word;
      rest = builtins.match "(super|laptop|gpu)(.+)" word;
      part = builtins.elemAt;
      ending = text: if text == "" then [ ] else splitWord text;
    in
    if size != null then
      [ "${part size 0}gb" ]
    else if glued != null && part glued 1 == "pro" then
      [ (part glued 0) "pro" ] ++ ending (part glued 2)
    else if glued != null then
      [ (part glued 0) ] ++ splitWord "${part glued 1}${part glued 2}"
    else if number != null then
      [ (part number 0) (part number 1) ] ++ ending (part number 2)
    else if board != null then
      board
    else if rest != null then
      [ (part rest 0) ] ++ splitWord (part rest 1)
    else
      [ word ];

  # "16 gb" is one word.
  addWord =
    words: word:
    let
      last = builtins.length words - 1;
      afterNumber =
        words != [ ] && builtins.match "[0-9]+" (builtins.elemAt words last) != null;
    in
    if builtins.elem word [ "gb" "gib" "g" ] && afterNumber then
      builtins.genList (builtins.elemAt words) last ++ [ "${builtins.elemAt words last}gb" ]
    else if isNoise word then
      words
    else
      words ++ builtins.filter (w: !isNoise w) (splitWord word);

  # "NVIDIA GeForce RTX 4090" as the table writes it: "rtx-4090".
  normalize =
    name:
    let
      spaced = builtins.replaceStrings separators (map (_: " ") separators) (lib.toLower name);
      words = builtins.foldl' addWord [ ] (lib.splitString " " spaced);
      last = builtins.length words - 1;
      at = builtins.elemAt words;
      # A driver's "RTX A3000 12GB Laptop GPU".
      isSized = i: builtins.match "[0-9]+gb" (at i) != null;
      isSizedLaptop = last > 0 && at last == "laptop" && isSized (last - 1);
    in
    lib.concatStringsSep "-" (
      if isSizedLaptop then
        builtins.genList at (last - 1)
        ++ [
          "laptop"
          (at (last - 1))
        ]
      else
        words
    );

  # The table's name of a part: as it is, by an alias, or behind "rtx-" or "jetson-"; null for
  # none.
  findKnown =
    plain:
    let
      rows = table.gpus;
      isAlias = n: builtins.elem plain (rows.${n}.aliases or [ ]);
      named = builtins.filter isAlias (builtins.attrNames rows);
    in
    if rows ? ${plain} then
      plain
    else if named != [ ] then
      builtins.head named
    else if rows ? "rtx-${plain}" then
      "rtx-${plain}"
    else if rows ? "jetson-${plain}" then
      "jetson-${plain}"
    else
      null;

  # "sm89-16gb" -> [ "89" "-16gb" "16" null ]; null for a name of another form.
  parseUnnamed = builtins.match "sm([1-9][0-9]{1,2})(-([1-9][0-9]{0,5})gb)?(-unlisted)?";

  describe =
    function: name: sm: memoryGB: isListed:
    let
      known = table.sms.known;
      lower = builtins.filter (k: k < sm) known;
      higher = builtins.filter (k: k > sm) known;
      nearest =
        lib.optional (lower != [ ]) (builtins.elemAt lower (builtins.length lower - 1))
        ++ lib.optional (higher != [ ]) (builtins.head higher);
      reached = builtins.filter (row: row.least <= sm) table.formatsBySm.rows;
      least = (builtins.head table.formatsBySm.rows).least;
    in
    if isListed && !builtins.elem sm known then
      throw (
        "${function}: target \"${name}\": no GPU with SM ${toString sm} is known; nearest: "
        + "${lib.concatMapStringsSep ", " toString nearest}. Write one of these; for a GPU that "
        + "enginix does not know yet \"${name}-unlisted\", or "
        + "{ sm = ${toString sm}; memoryGB = …; unlisted = true; }."
      )
    else if reached == [ ] then
      throw (
        "${function}: target \"${name}\": SM ${toString sm} is before SM ${toString least}. Use a "
        + "newer GPU; kind = \"reference\" runs on a CPU, without a target."
      )
    else
      {
        inherit name sm memoryGB;
        product = "a GPU of SM ${toString sm}";
        part = "other";
        inherit (builtins.elemAt reached (builtins.length reached - 1)) formats;
      }
      // (if isListed then { } else { unlisted = true; });

  # The rows that a name without a memory stands for: "a100" has two; [ ] for other names.
  sizesOf =
    plain:
    let
      rows = table.gpus;
      known = findKnown plain;
      isSize =
        prefix: n:
        lib.hasPrefix "${prefix}-" n
        && builtins.match "[0-9]+gb" (lib.removePrefix "${prefix}-" n) != null;
      isOne = n: builtins.any (prefix: isSize "${prefix}${plain}" n) [ "" "rtx-" "jetson-" ];
      sizes = builtins.filter (n: n == known || isOne n) (builtins.attrNames rows);
    in
    if builtins.length sizes > 1 then sizes else [ ];

  # The row with the least memory of a name that stands for several. What fits the smaller fits the
  # larger, too; an engine runs on both.
  findSmallest =
    plain:
    let
      sizes = sizesOf plain;
      less = a: b: table.gpus.${a}.memoryGB < table.gpus.${b}.memoryGB;
    in
    if sizes == [ ] then null else builtins.head (builtins.sort less sizes);

  findPart =
    plain:
    let
      known = findKnown plain;
    in
    if known != null then known else findSmallest plain;

  # The row of a part that is sliced: a label has the whole part's memory, a vGPU type its board.
  findSlicedPart =
    name:
    let
      plain = lib.removeSuffix "-mig" name;
      known = findPart plain;
      own = builtins.match "(.+)-[0-9]+gb" plain;
    in
    if known != null then
      known
    else
      table.names.boards.${plain} or (if own == null then null else findPart (builtins.head own));

  # The row and the memory that names say: a part's with another memory, or a slice of a GPU, named
  # by its memory: of MIG ("a100-40gb-mig-1g.5gb") or of a vGPU ("a10-12q", "a100-4-20c").
  # sizesIn :: string -> [ { row; memory; } ]
  sizesIn =
    plain:
    let
      slice = "([1-7]c[.])?[1-9]g[.]([1-9][0-9]{0,5})gb([.-](me|gfx|all))*";
      virtual = "([1-9][0-9]{0,2})[abcq](nome|meall|me|gfx)?";
      read =
        find: index: pattern:
        let
          parts = builtins.match pattern plain;
          row = find (builtins.head parts);
        in
        lib.optional (parts != null && row != null) {
          inherit row;
          memory = builtins.fromJSON (builtins.elemAt parts index);
        };
    in
    read findSlicedPart 2 "(.+)-${slice}"
    ++ read findPart 1 "(.+)-([1-9][0-9]{0,5})gb"
    ++ read findSlicedPart 1 "(.+)-[1-7]-${virtual}"
    ++ read findSlicedPart 1 "(.+)-${virtual}";

  # A row with the memory that a name says.
  resize =
    known: gigabytes:
    let
      row = table.gpus.${known};
      own = builtins.match "(.+)-[0-9]+gb" known;
      base = if own == null then known else builtins.head own;
    in
    if row.memoryGB == gigabytes then
      row // { name = known; }
    else
      removeAttrs row [ "memoryMiB" ]
      // {
        name = "${base}-${toString gigabytes}gb";
        memoryGB = gigabytes;
      };
in
rec {
  # A GPU of the table, or what a name such as "sm89-16gb" says; `name` is the table's, or the
  # part's with its memory.
  # find :: string -> string -> { name; sm; memoryGB; formats; … }
  find =
    function: name:
    let
      plain = normalize name;
      rows = table.gpus;
      known = findKnown plain;
      unnamed = parseUnnamed plain;
      smallest = findSmallest plain;
      sized = sizesIn plain;
      foreign = builtins.filter (row: builtins.match row.pattern plain != null) table.names.foreign;
      near = names.nearest plain (builtins.attrNames rows);
      number = i: matched: builtins.fromJSON (builtins.elemAt matched i);
    in
    if !builtins.isString name then
      throw "${function}: target = ${arguments.describe name} is not a GPU's name, such as \"l4\"."
    else if known != null then
      rows.${known} // { name = known; }
    else if unnamed != null then
      describe function plain (number 0 unnamed) (
        if builtins.elemAt unnamed 2 == null then null else number 2 unnamed
      ) (builtins.elemAt unnamed 3 == null)
    else if smallest != null then
      rows.${smallest} // { name = smallest; }
    else if sized != [ ] then
      resize (builtins.head sized).row (builtins.head sized).memory
    else if foreign != [ ] then
      throw (
        "${function}: target \"${name}\" ${(builtins.head foreign).why}. Use another GPU; kind = "
        + "\"reference\" runs on a CPU, without a target."
      )
    else
      throw (
        "${function}: unknown target \"${name}\"."
        + lib.optionalString (near != [ ]) " Did you mean ${builtins.head near}?"
        + " `enginix target` lists the names; any other GPU is "
        + "target = { sm = 89; memoryGB = 16; }."
      );

  # Which of several sizes of memory a name was taken for; null for a name that says it.
  # ambiguity :: string -> string|null
  ambiguity =
    name:
    let
      plain = normalize name;
      taken = findPart plain;
      others = builtins.filter (n: n != taken) (sizesOf plain);
    in
    if sizesOf plain == [ ] then
      null
    else
      "target \"${name}\" was taken for ${taken}; "
      + "say ${lib.concatStringsSep " or " others} for the other memory.";

  # The name of a GPU that the table does not have.
  # unnamed :: string -> int -> int -> bool -> string
  unnamed =
    function: sm: memoryGB: unlisted:
    if !builtins.isInt sm || sm < 10 || sm > 999 then
      throw "${function}: target.sm = ${arguments.describe sm} is not an SM such as 89."
    else if !builtins.isInt memoryGB || memoryGB < 1 then
      throw (
        "${function}: target.memoryGB = ${arguments.describe memoryGB} is not a number of "
        + "gigabytes such as 16."
      )
    else
      (find function (
        "sm${toString sm}-${toString memoryGB}gb" + lib.optionalString unlisted "-unlisted"
      )).name;
}
