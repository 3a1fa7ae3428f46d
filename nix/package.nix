# { name, folders, python, … } -> derivation
#
# The enginix command over a Python, made of the folders that its use needs and no others: a change
# of anything else builds nothing again that it built. The modules at the top of the package
# are in every one.
{ pkgs, lib, ... }:
let
  root = ../python/enginix;
in
{
  name,
  # Folders of the package, by their paths in it; null takes all.
  folders,
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
      inside = folder: lib.hasPrefix "${folder}/" "${relative}/";
      isAncestor = folder: lib.hasPrefix "${relative}/" "${folder}/";
      parent = dirOf relative;
      # What lists kinds has the descriptions of all, and nothing else has one: a change of its text
      # builds no engine again.
      hasRegistry = builtins.elem "kinds/registry" folders;
      isDescription = builtins.match "kinds/[^/]+/kind[.]py" relative != null;
      isPackageOfDescription = builtins.match "kinds/[^/]+(/__init__[.]py)?" relative != null;
      # Every command needs the modules of the command line itself.
      isPackageOfFolder =
        (lib.removeSuffix ".py" (baseNameOf path) == "__init__" || parent == "cli")
        && builtins.any (lib.hasPrefix "${parent}/") folders;
    in
    # Skip the build products of a working tree.
    baseNameOf path != "__pycache__"
    && !lib.hasSuffix ".so" path
    && (
      folders == null
      || hasRegistry && (isDescription || isPackageOfDescription)
      || builtins.any inside folders && !isDescription
      || type == "directory" && builtins.any isAncestor folders
      || type != "directory" && (parent == "." || isPackageOfFolder)
    );
  # A misspelt folder would be left out in silence.
  missing =
    if folders == null then
      [ ]
    else
      builtins.filter (folder: !builtins.pathExists (root + "/${folder}")) folders;
in
if missing != [ ] then
  throw "${name}: the package has no folder ${builtins.head missing}"
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
      launcher = ./builders/launcher.sh;
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
