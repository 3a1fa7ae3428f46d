# nixpkgs' own lib where it is at hand (./nixpkgs-lib, put there by tests/nix), else the functions that the stand-in has.
if builtins.pathExists ./nixpkgs-lib then
  import ./nixpkgs-lib
else
  let
    base = import (if builtins.pathExists ./hostpkgs-lib.nix then ./hostpkgs-lib.nix else ../hostpkgs/lib.nix);
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
