# Flake checks: the pure tests, their coverage, and the small model's chain.
scope: self:
let
  inherit (scope) lib pkgs check;
  tests = import ./pure.nix { inherit lib check; };
  failures = lib.runTests tests;

  # Every function of every check file is called by some pure test.
  source = builtins.readFile ./pure.nix;
  functions = builtins.concatLists (
    lib.mapAttrsToList (file: set: map (f: "${file}.${f}") (builtins.attrNames set)) check
  );
  untested = builtins.filter (
    f: builtins.match ".*check\\.${builtins.replaceStrings [ "." ] [ "\\." ] f}[^A-Za-z].*" (oneLine source) == null
  ) functions;
  oneLine = builtins.replaceStrings [ "\n" ] [ " " ];

  report =
    name: problems:
    if problems == [ ] then
      pkgs.runCommand name { } "touch $out"
    else
      throw "${name}: ${builtins.toJSON problems}";
in
{
  pure = report "enginix-pure-tests" failures;
  coverage = report "enginix-check-coverage" untested;
}
// lib.mapAttrs' (stage: lib.nameValuePair "build-tiny-qwen3-${stage}") scope.catalogue.tiny-qwen3
