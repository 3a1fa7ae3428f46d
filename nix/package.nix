# { name, kept, python, … } -> derivation
#
# The enginix command over a Python, made of the files that its use needs and no others: a change of anything else
# builds nothing again that was built by it.
{ pkgs, lib, ... }:
let
  root = ../python/enginix;
in
{
  name,
  # Files and directories of the package, by their paths in it; null takes all.
  kept,
  python,
  # The shell that lays it out, and what that reads beside `source`, `python` and `bash`.
  builder ? ./builders/enginix.sh,
  attributes ? { },
  passthru ? { },
  meta ? { },
}:
let
  keep =
    path: type:
    let
      relative = lib.removePrefix "${toString root}/" (toString path);
      # A directory is kept for what is below it.
      wanted = k: relative == k || lib.hasPrefix "${k}/" relative || type == "directory" && lib.hasPrefix "${relative}/" k;
    in
    # What a build leaves in a working tree is nobody's source.
    baseNameOf path != "__pycache__" && !lib.hasSuffix ".so" path && (kept == null || builtins.any wanted kept);
  # A name that is nothing's would be left out in silence.
  missing = if kept == null then [ ] else builtins.filter (k: !builtins.pathExists (root + "/${k}")) kept;
in
if missing != [ ] then
  throw "${name}: the package has no ${builtins.head missing}"
else
  pkgs.stdenvNoCC.mkDerivation (
    {
      inherit name;
      buildCommandPath = builder;
      source = builtins.path {
        name = "${name}-source";
        path = root;
        filter = keep;
      };
      inherit python;
      inherit (pkgs) bash;
      preferLocalBuild = true;
      passthru = { inherit python; } // passthru;
      meta = {
        description = "The enginix command, as far as ${name} needs it";
        license = lib.licenses.asl20;
        platforms = import ./systems.nix;
        mainProgram = "enginix";
      }
      // meta;
    }
    // attributes
  )
