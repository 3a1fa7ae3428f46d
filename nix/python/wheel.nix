# { file, sha256, url ? null, license ? [ ], description ? "", homepage ? null } -> derivation
#
# A wheel, unpacked into lib/python3.11/site-packages and compiled to bytecode. Over nixpkgs its
# libraries are patched to find the package set's. license: SPDX identifiers.
{
  lib,
  pkgs,
  python,
  ...
}@scope:
let
  fetchWheel = import ./fetch-wheel.nix scope;
  libraries = lib.importJSON ./libraries.json;
  freeLicences = lib.importJSON ./free-licences.json;
  # nixpkgs does not know every identifier, and counts one without that mark as not free.
  licenceOf =
    id:
    lib.getLicenseFromSpdxIdOr id {
      fullName = id;
      shortName = id;
      free = builtins.elem id freeLicences;
    };
  packageOf = path: lib.foldl' (set: name: set.${name}) pkgs (lib.splitString "." path);
in
{
  file,
  sha256,
  url ? null,
  license ? [ ],
  description ? "",
  homepage ? null,
}@wheel:
let
  # fetch-wheel.nix says what is wrong with a name that has no version.
  parts = lib.splitString "-" file ++ [ "0" ];
  pname = lib.replaceStrings [ "_" ] [ "-" ] (lib.toLower (builtins.head parts));
  compiled = !lib.hasSuffix "-any.whl" file;
in
(if compiled then pkgs.stdenv else pkgs.stdenvNoCC).mkDerivation (
  {
    inherit pname;
    version = builtins.elemAt parts 1;
    src = fetchWheel wheel;
    nativeBuildInputs = [ python ] ++ lib.optional compiled pkgs.autoPatchelfHook;
    dontUnpack = true;
    dontConfigure = true;
    dontBuild = true;
    installPhase = "source ${../builders/python-wheel.sh}";
    installer = ../builders/python_wheel.py;
    preferLocalBuild = true;
    meta = {
      inherit description;
      license = map licenceOf license;
      sourceProvenance = [
        (if compiled then lib.sourceTypes.binaryNativeCode else lib.sourceTypes.fromSource)
      ];
      platforms =
        if !compiled then
          import ../systems.nix
        else if lib.hasSuffix "aarch64.whl" file then
          [ "aarch64-linux" ]
        else
          [ "x86_64-linux" ];
    }
    // lib.optionalAttrs (homepage != null) { inherit homepage; };
  }
  // (
    if compiled then
      {
        buildInputs = map packageOf (builtins.attrNames libraries.packages);
        autoPatchelfIgnoreMissingDeps = libraries.absent.${pname} or [ ];
        # Nothing else of the wheel changes.
        dontStrip = true;
        dontPatchELF = true;
        dontPatchShebangs = true;
      }
    else
      { dontFixup = true; }
  )
)
