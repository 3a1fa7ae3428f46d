# A real tritonserver without GPU support, with its Python backend: the one inside nvidia-pytriton's wheel.
# nixpkgs packages none.
{ pkgs, lib, ... }:
let
  version = "2.51.0"; # of tritonserver; the wheel counts its own
  python = pkgs.python312; # as the runtime environment of enginix.nix
in
if !pkgs.stdenvNoCC.hostPlatform.isx86_64 then
  throw "tritonserver: nvidia-pytriton's wheel exists for x86_64-linux only. Pass another: (mkLib pkgs).override { tritonserver = …; }"
else
  pkgs.stdenv.mkDerivation {
    pname = "tritonserver-cpu";
    inherit version;
    src = pkgs.fetchPypi {
      pname = "nvidia_pytriton";
      version = "0.7.0";
      format = "wheel";
      dist = "py3";
      python = "py3";
      platform = "manylinux_2_35_x86_64";
      sha256 = "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df";
    };
    nativeBuildInputs = [
      pkgs.unzip
      pkgs.autoPatchelfHook
    ];
    buildInputs = [
      pkgs.stdenv.cc.cc.lib
      pkgs.zlib
      pkgs.expat
      python
    ];
    # The wheel carries a stub for each Python version; those of others stay behind.
    pythonVersion = python.pythonVersion;
    unpackPhase = "unzip -q $src";
    installPhase = "source ${./builders/tritonserver-cpu.sh}";
    dontStrip = true;
    passthru.version = version;
    meta = {
      description = "Triton Inference Server, CPU build with the Python backend";
      homepage = "https://github.com/triton-inference-server/pytriton";
      license = lib.licenses.asl20;
      platforms = [ "x86_64-linux" ];
      mainProgram = "tritonserver";
    };
  }
