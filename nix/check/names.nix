{ lib }:
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
}
