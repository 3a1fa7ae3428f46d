# Flake checks: the pure tests, their coverage, and the small model's chain.
scope: self:
let
  inherit (scope) lib pkgs check;
  files = map (name: ./pure + "/${name}") (builtins.attrNames (builtins.readDir ./pure));
  tests = builtins.foldl' (all: file: all // import file { inherit lib check; }) { } files;
  failures = lib.runTests tests;

  # Every function of every check file is called by some pure test.
  source = lib.concatMapStringsSep "\n" builtins.readFile files;
  functions = builtins.concatLists (
    lib.mapAttrsToList (file: set: map (f: "${file}.${f}") (builtins.attrNames set)) check
  );
  ends = [ " " ")" ";" "\n" ];
  untested = builtins.filter (
    f: builtins.replaceStrings (map (end: "check.${f}${end}") ends) (map (_: "") ends) source == source
  ) functions;

  # What this system has.
  packages = import ../../nix/packages.nix scope;

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
// lib.mapAttrs' (stage: lib.nameValuePair "build-tiny-qwen3-${stage}") (
  lib.filterAttrs (stage: _: packages ? "tiny-qwen3-${stage}") scope.catalogue.tiny-qwen3
)
# A virtual machine, of NixOS: nixpkgs has what makes it.
// lib.optionalAttrs (pkgs ? testers && packages ? tiny-qwen3-triton-server) { nixos = import ./vm.nix scope; }
