# name of a lock -> derivation: the Python environment of that lock, by the same code over every
# package set
#
# Why Python 3.11 (`python` in nix/default.nix): nixos-26.05 has it, and upstream keeps it until
# October 2027, while nixpkgs dropped 3.10 at its end of life. nvidia-pytriton 0.7.0 carries a stub
# for it. NumPy 1.26 has wheels for it, and Triton 2.51's Python stub cannot read arrays of NumPy 2.
# tensorrt-edgellm has wheels for it. Debian 12's own python3 is 3.11: the wheels that the tests run
# there are the wheels that are used over nixpkgs.
{
  lib,
  pkgs,
  python,
  torch,
  ...
}@scope:
let
  readLock = import ./read-lock.nix scope;
  mkWheel = import ./wheel.nix scope;
  mkEnvironment = import ./environment.nix scope;
  normalizedName = name: lib.replaceStrings [ "_" "." ] [ "-" "-" ] (lib.toLower name);

  # What `torch` of the scope may be: null (the lock's wheel), a wheel's description, a package, or
  # a list of these.
  torchParts =
    if torch == null then
      [ ]
    else if builtins.isList torch then
      torch
    else
      [ torch ];
  isPackage = part: part ? outPath;
  # A package of nixpkgs brings the modules that it propagates, and the interpreter, which is there.
  packagesOf =
    part:
    if isPackage part && python ? pkgs then
      builtins.filter (p: p ? pythonModule) (python.pkgs.requiredPythonModules [ part ])
    else
      [ ];
  nameOf = part: normalizedName (part.pname or (builtins.head (lib.splitString "-" part.file)));
in
name:
let
  locked = readLock name;
  takesTorch = torchParts != [ ] && locked.wheels ? torch;
  replaced = if takesTorch then map nameOf torchParts else [ ];
  lockedWheels = builtins.removeAttrs locked.wheels replaced;
  # What the lock pins stays as the lock pins it, unless it is given by name.
  isAdded = p: !(lockedWheels ? ${nameOf p}) && !(builtins.elem (nameOf p) replaced);
  propagated = builtins.filter isAdded (builtins.concatLists (map packagesOf torchParts));
in
mkEnvironment {
  inherit name;
  wheels =
    map (wheel: mkWheel (locked.fileOf wheel)) (builtins.attrValues lockedWheels)
    ++ lib.optionals takesTorch (
      map (part: if isPackage part then part else mkWheel part) torchParts ++ propagated
    );
}
