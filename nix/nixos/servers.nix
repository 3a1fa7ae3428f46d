# The servers of services.enginix that are on, and those of them that can be rendered.
{ lib }:
cfg: rec {
  enabled = lib.filterAttrs (_: s: s.enable) cfg.servers;

  # A name is part of a unit's and a user's name. NixOS refuses others as the name of a unit, before
  # any assertion is read.
  isName = name: builtins.match "[a-z0-9][a-z0-9_-]{0,31}" name != null;

  # One of engine and repo is set.
  hasSource = s: (s.engine != null) != (s.repo != null);

  # assertions.nix says what the others lack.
  complete = lib.filterAttrs (name: s: isName name && hasSource s) enabled;
}
