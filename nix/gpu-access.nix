# How a build reaches a GPU -> attributes of its derivation. Nix schedules it on a builder that has
# the features, and refuses it elsewhere before it starts. "features" is Nix's sandbox, with the GPU
# let in by the builder's pre-build hook; "relaxed" is outside of the sandbox.
{ lib, check, ... }:
function: isolation: features:
let
  known = [
    "features"
    "relaxed"
  ];
  isRelaxed = check.arguments.oneOf function "isolation" known isolation == "relaxed";
in
{ requiredSystemFeatures = features; } // lib.optionalAttrs isRelaxed { __noChroot = true; }
