# nixpkgs' own lib where it is at hand (./nixpkgs-lib, put there by tests/nix), else the functions
# that the stand-in has.
if builtins.pathExists ./nixpkgs-lib then
  import ./nixpkgs-lib
else
  let
    base = import (if builtins.pathExists ./hostpkgs-lib.nix then ./hostpkgs-lib.nix else ../hostpkgs/lib.nix);
    # Of the identifiers that wheels and models carry those that nixpkgs knows. It has no PSF-2.0
    # and no expressions.
    spdx = builtins.listToAttrs (
      map
        (spdxId: {
          name = base.toLower spdxId;
          value = free spdxId // {
            inherit spdxId;
            shortName = base.toLower spdxId;
          };
        })
        [
          "0BSD"
          "BSD-2-Clause"
          "BSD-3-Clause"
          "BSL-1.0"
          "CC0-1.0"
          "CNRI-Python"
          "HPND"
          "ISC"
          "LGPL-2.1-or-later"
          "MIT"
          "MIT-0"
          "MPL-2.0"
          "NCSA"
          "Python-2.0"
          "Unlicense"
          "Zlib"
        ]
    );
    free = fullName: {
      inherit fullName;
      free = true;
    };
    unfree = fullName: {
      inherit fullName;
      free = false;
    };
  in
  {
    getName = package: package.pname or (builtins.parseDrvName package.name).name;
  }
  // base
  // {
    getLicenseFromSpdxIdOr = id: default: base.getLicenseFromSpdxIdOr id (spdx.${base.toLower id} or default);
    licenses = {
      bsd3 = free "BSD 3-clause \"New\" or \"Revised\" License" // { shortName = "bsd3"; };
      bsd2 = free "BSD 2-clause \"Simplified\" License" // { shortName = "bsd2"; };
      mit = free "MIT License" // { shortName = "mit"; };
      psfl = free "Python Software Foundation License version 2" // { shortName = "psfl"; };
      mpl20 = free "Mozilla Public License 2.0" // { shortName = "mpl20"; };
      isc = free "ISC License" // { shortName = "isc"; };
      issl = unfree "Intel Simplified Software License" // { shortName = "issl"; };
      nvidiaCuda = unfree "CUDA EULA" // { shortName = "CUDA EULA"; };
      unfree = unfree "Unfree" // { shortName = "unfree"; };
      unfreeRedistributable = unfree "Unfree redistributable" // { shortName = "unfreeRedistributable"; };
    }
    // base.licenses;
    sourceTypes = {
      binaryNativeCode = {
        isSource = false;
        shortName = "binaryNativeCode";
      };
      binaryBytecode = {
        isSource = false;
        shortName = "binaryBytecode";
      };
      fromSource = {
        isSource = true;
        shortName = "fromSource";
      };
    };
  }
