#!/usr/bin/env bash
# What one Nix evaluates of a copy of the project, as lines of JSON: its version, the pure tests that fail, the path of each
# package's derivation, and whether the page of NixOS options is as committed.
#
#   nix_checks.sh DIR
set -euo pipefail
cd "$1"
export NIX_CONFIG="experimental-features = nix-command flakes
substitute = false
flake-registry =
warn-dirty = false
sandbox = false
build-users-group ="
printf '{"version": "%s"}\n' "$(nix --version 2>/dev/null | sed 's/.* //')"
# shellcheck disable=SC2016 # Nix's, not the shell's
nix-instantiate --eval --strict --json -E '
  let
    lib = import ./tests/hostpkgs/lib.nix;
    check = import ./nix/check { inherit lib; };
    files = map (name: ./tests/nix/pure + "/${name}") (builtins.attrNames (builtins.readDir ./tests/nix/pure));
    tests = builtins.foldl'"'"' (all: file: all // import file { inherit lib check; }) { } files;
  in
  {
    tests = builtins.length (builtins.attrNames tests);
    failures = map (failure: failure.name) (lib.runTests tests);
  }' 2>/dev/null
echo
nix eval --json --override-input nixpkgs "path:$PWD/tests/hostpkgs" --no-write-lock-file "path:$PWD#packages.x86_64-linux" \
  --apply 'set: { derivations = builtins.mapAttrs (_: package: package.drvPath) set; }' 2>/dev/null
echo
nix eval --impure --raw --expr 'import ./tests/nix/options.nix' 2>/dev/null | cmp -s - docs/reference/nixos-options.md && fresh=true || fresh=false
echo "{\"options\": $fresh}"
