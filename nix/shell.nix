# What working on enginix needs.
{
  pkgs,
  availability,
  core-python,
  runtime-python,
  ...
}:
pkgs.mkShellNoCC {
  packages = [
    (if availability.runtime then runtime-python else core-python)
    pkgs.ruff
    pkgs.mypy
    pkgs.shellcheck
    pkgs.nixfmt-tree
  ];
}
