# `meta` of an artefact that is made from a model, checkpoint, engine or repository: it takes over
# licence and page of that source.
{ lib, ... }:
# source -> meta -> meta
source: meta:
{
  platforms = import ./systems.nix;
}
// lib.optionalAttrs (source ? meta.license) { inherit (source.meta) license; }
// lib.optionalAttrs (source ? meta.homepage) { inherit (source.meta) homepage; }
// meta
