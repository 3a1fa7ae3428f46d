# GPUs by the names that people write, and any other by its SM and memory: what
# python/enginix/machine/gpu_table.py reads, too. tests/python/engine_tensorrt/test_twin.py
# holds the two together.
{
  lib,
  names,
  arguments,
  ...
}:
let
  table = lib.importJSON ../../python/enginix/data/machine/gpus.json;

  # Words that people and drivers write, and that tell no part from another.
  noise = [
    ""
    "blackwell"
    "core"
    "desktop"
    "dgx"
    "edition"
    "geforce"
    "generation"
    "gpu"
    "hbm2"
    "hbm2e"
    "hbm3"
    "hbm3e"
    "hgx"
    "nvidia"
    "nvl36"
    "nvl72"
    "pcie"
    "server"
    "sxm"
    "sxm2"
    "sxm3"
    "sxm4"
    "sxm5"
    "sxm6"
    "tensor"
    "tesla"
    "workstation"
  ];
  separators = [ "_" "-" "(" ")" "," "/" "®" "™" ];

  # "rtx2080ti" -> [ "rtx" "2080" "ti" ].
  splitWord =
    word:
    let
      glued = builtins.match "(rtx|gtx)([0-9].*)" word;
      number = builtins.match "([0-9]{4})(ti|super|d)" word;
    in
    if glued != null then
      [ (builtins.head glued) ] ++ splitWord (builtins.elemAt glued 1)
    else if number != null then
      number
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
    if (word == "gb" || word == "gib") && afterNumber then
      builtins.genList (builtins.elemAt words) last ++ [ "${builtins.elemAt words last}gb" ]
    else if builtins.elem word noise then
      words
    else
      words ++ splitWord word;

  # "NVIDIA GeForce RTX 4090" as the table writes it: "rtx-4090".
  normalize =
    name:
    let
      spaced = builtins.replaceStrings separators (map (_: " ") separators) (lib.toLower name);
    in
    lib.concatStringsSep "-" (builtins.foldl' addWord [ ] (lib.splitString " " spaced));

  # The table's name of a part: as it is, by an alias, or behind "rtx-"; null for none.
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
    else
      null;

  # "sm89-16gb" -> [ "89" "-16gb" "16" ]; null for a name of another form.
  parseUnnamed = builtins.match "sm([1-9][0-9][0-9]?)(-([1-9][0-9]*)gb)?";

  describe =
    function: name: sm: memoryGB:
    let
      reached = builtins.filter (row: row.least <= sm) table.formatsBySm.rows;
      least = (builtins.head table.formatsBySm.rows).least;
    in
    if reached == [ ] then
      throw "${function}: target \"${name}\": SM ${toString sm} is before SM ${toString least}."
    else
      {
        inherit name sm memoryGB;
        product = "a GPU of SM ${toString sm}";
        part = "other";
        inherit (builtins.elemAt reached (builtins.length reached - 1)) formats;
      };
in
rec {
  # A GPU of the table, or what a name such as "sm89-16gb" says; `name` is the table's.
  # find :: string -> string -> { name; sm; memoryGB; formats; … }
  find =
    function: name:
    let
      plain = normalize name;
      rows = table.gpus;
      known = findKnown plain;
      unnamed = parseUnnamed plain;
      sizesOf =
        part:
        builtins.filter (
          n:
          lib.hasPrefix "${part}-" n
          && builtins.match "[0-9]+gb" (lib.removePrefix "${part}-" n) != null
        ) (builtins.attrNames rows);
      sizes = sizesOf plain ++ sizesOf "rtx-${plain}";
      sized = builtins.match "(.+)-([1-9][0-9]*)gb" plain;
      part = if sized == null then null else findKnown (builtins.head sized);
      gigabytes = builtins.fromJSON (builtins.elemAt sized 1);
      near = names.nearest plain (builtins.attrNames rows);
    in
    if !builtins.isString name then
      throw "${function}: target = ${arguments.describe name} is not a GPU's name, such as \"l4\"."
    else if known != null then
      rows.${known} // { name = known; }
    else if unnamed != null then
      describe function plain (builtins.fromJSON (builtins.head unnamed)) (
        let
          size = builtins.elemAt unnamed 2;
        in
        if size == null then null else builtins.fromJSON size
      )
    else if sizes != [ ] then
      # What fits the smaller fits the larger, too; an engine runs on both.
      find function (
        builtins.head (builtins.sort (a: b: rows.${a}.memoryGB < rows.${b}.memoryGB) sizes)
      )
    else if part != null && rows.${part}.memoryGB == gigabytes then
      rows.${part} // { name = part; }
    else if part != null then
      # The part's SM, with the memory that the name says.
      describe function "sm${toString rows.${part}.sm}-${toString gigabytes}gb" rows.${part}.sm
        gigabytes
    else
      throw (
        "${function}: unknown target \"${name}\"."
        + lib.optionalString (near != [ ]) " Did you mean ${builtins.head near}?"
        + " `enginix target` lists the names; any other GPU is "
        + "target = { sm = 89; memoryGB = 16; }."
      );

  # The name of a GPU that the table does not have.
  # unnamed :: string -> int -> int -> string
  unnamed =
    function: sm: memoryGB:
    if !builtins.isInt sm || sm < 10 || sm > 999 then
      throw "${function}: target.sm = ${arguments.describe sm} is not an SM such as 89."
    else if !builtins.isInt memoryGB || memoryGB < 1 then
      throw (
        "${function}: target.memoryGB = ${arguments.describe memoryGB} is not a number of "
        + "gigabytes such as 16."
      )
    else
      "sm${toString sm}-${toString memoryGB}gb";
}
