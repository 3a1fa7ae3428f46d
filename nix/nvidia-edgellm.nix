# A Python with NVIDIA's wheel tensorrt-edgellm and the companions that it pins: the exporter, which runs on a CPU.
#
# TensorRT is not in it. It is on NVIDIA's own index and unfree: a Python that has both is passed as
# (mkLib pkgs).override { edgellm-runtime = …; }.
{ pkgs, lib, ... }:
let
  data = lib.importJSON ../python/enginix/data/edgellm.json;
  wheels = (lib.importJSON ../python/enginix/data/runtimes.json).runtimes."edgellm-${data.version}".wheel;
  inherit (pkgs.stdenvNoCC.hostPlatform) system;
  python = pkgs.python312;
  wheel =
    ps:
    {
      pname,
      version,
      sha256,
      python ? "py3",
      abi ? "none",
      dist ? python,
      platform ? "any",
      dependencies,
      description,
    }:
    ps.buildPythonPackage {
      inherit pname version dependencies;
      format = "wheel";
      src = pkgs.fetchPypi {
        pname = lib.replaceStrings [ "-" ] [ "_" ] pname;
        inherit
          version
          sha256
          python
          abi
          dist
          platform
          ;
        format = "wheel";
      };
      # Compiled parts are for Ubuntu with CUDA and TensorRT, and stay as they are; the export loads none of them.
      dontStrip = true;
      dontAutoPatchelf = true;
      pythonRelaxDeps = true;
      pythonRemoveDeps = [ "cuda-python" ];
      meta = {
        inherit description;
        license = lib.licenses.asl20;
      };
    };
in
if !(wheels ? ${system}) then
  throw "edgellm: the wheel tensorrt-edgellm ${data.version} exists for ${lib.concatStringsSep " and " (builtins.attrNames wheels)}, not for ${system}; export there, the result is the same everywhere."
else
  python.withPackages (
    ps:
    let
      graphsurgeon = wheel ps {
        pname = "onnx-graphsurgeon";
        version = "0.6.1";
        python = "py2.py3";
        sha256 = "fabc53fc60909dd032cfd889016dd5d4139ab566af4a9039002818f552c73547";
        dependencies = [
          ps.numpy
          ps.onnx
        ];
        description = "Edits ONNX graphs";
      };
    in
    [
      (wheel ps {
        pname = "tensorrt-edgellm";
        inherit (data) version;
        python = "cp312";
        abi = "cp312";
        inherit (wheels.${system}) platform;
        sha256 = wheels.${system}.cp312;
        dependencies = [
          ps.torch
          ps.transformers
          ps.huggingface-hub
          ps.onnx
          ps.onnxscript
          ps.safetensors
          ps.numpy
          graphsurgeon
        ];
        description = "TensorRT Edge-LLM: exporter, builder, server";
      })
      ps.ml-dtypes
      ps.fastapi
      ps.uvicorn
      ps.python-multipart
      ps.av
    ]
  )
