# name -> { wheels, fileOf, missing }: a lock, as it is for this system
#
# wheels: name -> entry. fileOf: entry -> description of its wheel for wheel.nix; throws for a
# wheel that does not exist for this system. missing: names of the wheels that do not exist for this
# system; `[ ]` if the environment can be built.
{ lib, pkgs, ... }:
let
  inherit (pkgs.stdenvNoCC.hostPlatform) system;
in
name:
let
  lock = lib.importJSON (./locks + "/${name}.json");
  wheels = builtins.mapAttrs (wheel: entry: entry // { name = wheel; }) lock.wheels;
  exists = entry: entry.files ? any || entry.files ? ${system};
in
{
  inherit wheels;
  missing = builtins.filter (wheel: !exists wheels.${wheel}) (builtins.attrNames wheels);
  fileOf =
    entry:
    if exists entry then
      (entry.files.any or entry.files.${system})
      // {
        inherit (entry) license description;
        homepage = entry.homepage or null;
      }
    else
      throw (
        (
          "enginix: the Python environment ${name} needs ${entry.name} ${entry.version}, whose "
          + "pinned wheel exists for "
        )
        + "${lib.concatStringsSep " and " (builtins.attrNames entry.files)}, not for ${system}. "
        + (
          if entry.name == "torch" then
            "Pass one: (mkLib pkgs).override { torch = …; }."
          else
            "Pass the whole environment: (mkLib pkgs).override { ${name}-python = …; }."
        )
      );
}
