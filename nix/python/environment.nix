# { name, wheels } -> derivation: bin/python3 with those wheels, laid out as a virtual environment
#
# The wheels are linked, not copied: environments share them. Two wheels that bring one file with
# different contents are refused.
{
  lib,
  pkgs,
  python,
  ...
}:
{ name, wheels }:
pkgs.stdenvNoCC.mkDerivation {
  name = "python3-${name}";
  buildCommandPath = ../builders/python-environment.sh;
  linker = ../builders/python_environment.py;
  inherit python wheels;
  nativeBuildInputs = [ python ];
  preferLocalBuild = true;
  passthru = { inherit wheels; };
  meta = {
    description = "Python with the wheels of enginix's environment ${name}";
    mainProgram = "python3";
    platforms = import ../systems.nix;
  };
}
