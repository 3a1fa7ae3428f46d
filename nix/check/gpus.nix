# GPUs by the names that people write, and any other by its SM and memory: what
# python/enginix/machine/gpu_table.py reads, too. tests/python/engine_tensorrt/test_twin.py
# holds the two together.
{ lib, names, ... }:
let
  table = lib.importJSON ../../python/enginix/data/machine/gpus.json;

  makerWords = [
    ""
    "nvidia"
    "geforce"
    "tesla"
    "gpu"
  ];
  # "NVIDIA GeForce RTX 4090" as the table writes it: "rtx-4090".
  normalize =
    name:
    let
      spaced = builtins.replaceStrings [ "_" "-" ] [ " " " " ] (lib.toLower name);
      words = builtins.filter (word: !builtins.elem word makerWords) (lib.splitString " " spaced);
      joined = lib.concatStringsSep "-" words;
      glued = builtins.match "rtx([0-9].*)" joined;
    in
    if glued == null then joined else "rtx-${builtins.head glued}";

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
      named = builtins.filter (n: builtins.elem plain (rows.${n}.aliases or [ ])) (
        builtins.attrNames rows
      );
      unnamed = parseUnnamed plain;
      sizes = builtins.filter (
        n:
        lib.hasPrefix "${plain}-" n
        && builtins.match "[0-9]+gb" (lib.removePrefix "${plain}-" n) != null
      ) (builtins.attrNames rows);
      near = names.nearest plain (builtins.attrNames rows);
    in
    if rows ? ${plain} then
      rows.${plain} // { name = plain; }
    else if named != [ ] then
      rows.${builtins.head named} // { name = builtins.head named; }
    else if unnamed != null then
      describe function plain (builtins.fromJSON (builtins.head unnamed)) (
        let
          gigabytes = builtins.elemAt unnamed 2;
        in
        if gigabytes == null then null else builtins.fromJSON gigabytes
      )
    else if sizes != [ ] then
      # What fits the smaller fits the larger, too; an engine runs on both.
      find function (
        builtins.head (builtins.sort (a: b: rows.${a}.memoryGB < rows.${b}.memoryGB) sizes)
      )
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
      throw "${function}: target.sm = ${builtins.toJSON sm} is not an SM such as 89."
    else if !builtins.isInt memoryGB || memoryGB < 1 then
      throw (
        "${function}: target.memoryGB = ${builtins.toJSON memoryGB} is not a number of gigabytes "
        + "such as 16."
      )
    else
      "sm${toString sm}-${toString memoryGB}gb";
}
