# name -> the Python environment of that name, as the flake's functions make it; `dev` is what tests use, `lint` what lint uses.
# `tritonserver` is the server that goes with them.
name:
let
  scope = import ../../nix { pkgs = import ./. { system = builtins.currentSystem; }; };
in
{
  dev = import ../../nix/python scope "dev";
  lint = import ../../nix/python scope "lint";
  inherit (scope) tritonserver;
}
.${name} or scope."${name}-python"
