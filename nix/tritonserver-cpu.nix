# A real tritonserver without GPU support, with its Python backend: the one inside nvidia-pytriton's
# wheel. nixpkgs packages none.
{
  lib,
  pkgs,
  python,
  ...
}@scope:
let
  version = "2.51.0"; # of tritonserver; the wheel counts its own
  lock = import ./python/read-lock.nix scope "tritonserver";
  inherit (lock.wheels) nvidia-pytriton;
  systems = builtins.attrNames nvidia-pytriton.files;
in
if lock.missing != [ ] then
  throw (
    "tritonserver: nvidia-pytriton's wheel exists for ${lib.concatStringsSep " and " systems} "
    + "only. Pass another: (mkLib pkgs).override { tritonserver = …; }"
  )
else
  pkgs.stdenv.mkDerivation {
    pname = "tritonserver-cpu";
    inherit version;
    src = import ./python/fetch-wheel.nix scope (lock.fileOf nvidia-pytriton);
    nativeBuildInputs = [
      python
      pkgs.autoPatchelfHook
    ];
    buildInputs = [
      pkgs.stdenv.cc.cc.lib
      pkgs.zlib
      python # the stub links libpython
    ];
    # The wheel carries a stub for each Python version; those of others stay behind.
    inherit (python) pythonVersion;
    dontUnpack = true;
    dontConfigure = true;
    dontBuild = true;
    installPhase = "source ${./builders/tritonserver-cpu.sh}";
    # Nothing else of NVIDIA's files changes.
    dontStrip = true;
    dontPatchELF = true;
    passthru = { inherit version; };
    meta = {
      description = "Triton Inference Server, CPU build with the Python backend";
      homepage = "https://github.com/triton-inference-server/server";
      # Triton's own, PyTriton's and DCGM's, and that of libcudart, which tritonserver links without
      # using a GPU: NVIDIA's CUDA EULA, redistributable and not free. nix/outputs.nix allows this
      # one package.
      license = [
        lib.licenses.bsd3
        lib.licenses.asl20
        lib.licenses.nvidiaCudaRedist
      ];
      sourceProvenance = [ lib.sourceTypes.binaryNativeCode ];
      platforms = systems;
      mainProgram = "tritonserver";
    };
  }
