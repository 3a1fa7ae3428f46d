# `meta` of what is made of a model, checkpoint, engine or repository: licence and page are those of
# what it is made of.
{ lib, ... }:
# source -> meta -> meta
source: meta:
{
  platforms = import ./systems.nix;
}
// lib.optionalAttrs (source ? meta.license) { inherit (source.meta) license; }
// lib.optionalAttrs (source ? meta.homepage) { inherit (source.meta) homepage; }
// meta
