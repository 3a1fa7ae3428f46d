# The private environment of a build that imports the CUDA stack, as a shell file to source.
#
# Nix gives every build HOME=/homeless-shelter, and half of the stack writes to HOME while it is
# imported. The variables are data/runtime/environment.json, each with its reason. The directory is
# hidden, because a visible `triton` or `torch` in the working directory would be imported in the
# library's place.
{ lib, pkgs, ... }:
let
  variables = (lib.importJSON ../python/enginix/data/runtime/environment.json).variables;
  value = v: builtins.replaceStrings [ "@work@" ] [ "\${NIX_BUILD_TOP:-$PWD}/.e" ] v;
  isPath = v: lib.hasPrefix "@work@" v;
in
pkgs.writeText "build-environment.sh" (
  lib.concatLines (
    # Builds run beside one another. PyTorch's threads spin while they wait for each other, so that
    # on a busy machine a small model takes twenty times as long; PASSIVE lets them sleep and
    # changes no number.
    [ "export OMP_WAIT_POLICY=PASSIVE" ]
    ++ lib.mapAttrsToList (name: row: ''export ${name}="${value row.value}"'') variables
    ++ lib.mapAttrsToList (name: _: ''mkdir -p "''$${name}"'') (
      lib.filterAttrs (_: row: isPath row.value) variables
    )
  )
)
