# `meta` of an artefact that is made from a model, checkpoint, engine or repository: it takes over
# licence and page of that source, and says where its runtime is not verified.
{ lib, ... }:
# source -> meta -> meta
source: meta:
let
  runtime = source.runtimePackage or source.engine.runtimePackage or { };
  isVerified = runtime.row.verified or true;
in
{
  platforms = import ./systems.nix;
}
// lib.optionalAttrs (source ? meta.license) { inherit (source.meta) license; }
// lib.optionalAttrs (source ? meta.homepage) { inherit (source.meta) homepage; }
// meta
// lib.optionalAttrs (meta ? description && !isVerified) {
  description = "${meta.description}; runtime ${runtime.id} is not verified by enginix";
}
