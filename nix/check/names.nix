{ lib }:
let
  anotherImage =
    " For another image pass runtime = mkRuntime { like = …; image = …; versions = { … }; }.";
in
rec {
  # Sorts candidates by edit distance and keeps the near ones.
  # nearest :: string -> [ string ] -> [ string ]
  nearest =
    wanted: known:
    let
      distance = lib.strings.levenshtein wanted;
      limit = 1 + builtins.stringLength wanted / 3;
      near = builtins.filter (k: distance k <= limit) known;
    in
    builtins.sort (a: b: distance a < distance b) near;

  # "unknown X "y"; did you mean …? known: …"
  # unknown :: string -> string -> [ string ] -> string
  unknown =
    what: wanted: known:
    let
      near = nearest wanted known;
      hint = if near == [ ] then "" else " Did you mean ${builtins.head near}?";
    in
    "unknown ${what} \"${wanted}\".${hint} Known: ${lib.concatStringsSep ", " known}.";

  # A runtime that the table does not have. Another release is no typing error: nothing near it is
  # meant, and its image is described (python/enginix/runtime/table.py).
  # unknownRuntime :: string -> [ string ] -> string
  unknownRuntime =
    wanted: known:
    let
      release = builtins.match "(trtllm-)?([0-9]+[.][0-9]+[.][0-9]+.*)" wanted;
      own = "trtllm-${builtins.elemAt release 1}";
      isDescribable = builtins.any (lib.hasPrefix "trtllm-") known;
    in
    if release == null then
      unknown "runtime" wanted known + lib.optionalString isDescribable anotherImage
    else
      "unknown runtime \"${wanted}\"."
      + lib.optionalString (builtins.elem own known) " Did you mean ${own}?"
      + " Known: ${lib.concatStringsSep ", " known}."
      + lib.optionalString isDescribable anotherImage;
}
