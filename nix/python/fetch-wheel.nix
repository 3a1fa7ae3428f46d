# { file, sha256, url ? null } -> fixed-output derivation: a wheel
#
# Without an address it is PyPI's, which fetchPypi finds by the parts of its name.
{ lib, pkgs, ... }:
{
  file,
  sha256,
  url ? null,
  ...
}:
let
  # NAME-VERSION[-BUILD]-PYTHON-ABI-PLATFORM.whl; inside of each part "-" is written "_".
  parts = lib.splitString "-" (lib.removeSuffix ".whl" file);
  count = builtins.length parts;
  part = builtins.elemAt parts;
in
if !(lib.hasSuffix ".whl" file) || count < 5 || count > 6 then
  throw "enginix: ${file} is not the file name of a wheel: NAME-VERSION-PYTHON-ABI-PLATFORM.whl"
else if url != null then
  pkgs.fetchurl {
    name = file;
    inherit url sha256;
  }
else
  pkgs.fetchPypi {
    format = "wheel";
    pname = part 0;
    version = if count == 6 then "${part 1}-${part 2}" else part 1;
    python = part (count - 3);
    dist = part (count - 3);
    abi = part (count - 2);
    platform = part (count - 1);
    inherit sha256;
  }
