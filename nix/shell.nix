# What working on enginix needs.
{ pkgs, enginix, ... }:
pkgs.mkShellNoCC {
  packages = [
    enginix.python
    pkgs.ruff
    pkgs.mypy
    pkgs.shellcheck
    pkgs.nixfmt-tree
  ];
}
