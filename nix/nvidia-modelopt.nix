# A Python with NVIDIA's quantizer, nvidia-modelopt, which nixpkgs does not have; PyTorch is its own build, with CUDA.
{ pkgs, lib, ... }:
let
  version = "0.47.0";
  python = pkgs.python312.override {
    packageOverrides = _: previous: {
      torch = previous.torch-bin;
    };
  };
in
python.withPackages (ps: [
  (ps.buildPythonPackage {
    pname = "nvidia-modelopt";
    inherit version;
    format = "wheel";
    src = pkgs.fetchPypi {
      pname = "nvidia_modelopt";
      inherit version;
      format = "wheel";
      python = "py3";
      dist = "py3";
      sha256 = "db13e62d7efe4a1512e8b8c3f479e28d64022306f94a194f13234e7dca1d3120";
    };
    dependencies = [
      ps.ninja
      ps.numpy
      ps.nvidia-ml-py
      ps.omegaconf
      ps.packaging
      ps.pulp
      ps.pydantic
      ps.pyyaml
      ps.regex
      ps.requests # imported, and not declared
      ps.rich
      ps.safetensors
      ps.scipy
      ps.setuptools
      ps.torch
      ps.tqdm
    ];
    pythonRelaxDeps = true;
    meta = {
      description = "NVIDIA Model Optimizer: quantization, pruning, distillation";
      license = lib.licenses.asl20;
    };
  })
  ps.huggingface-hub
  ps.transformers
  ps.ml-dtypes
])
