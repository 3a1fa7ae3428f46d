# Table of contents: pkgs -> the functions that turn a Hugging Face model into a served deployment.
#
#   enginix.lib.mkLib pkgs
#
# Everything is one scope: `(mkLib pkgs).override { tritonserver = …; }` swaps a part for all that use it.
{
  pkgs,
  overrides ? { },
}:
let
  inherit (pkgs) lib;

  parts = {
    inherit lib pkgs;

    # How evaluation tells what it does not refuse: text -> value -> value.
    inherit (lib) warn;

    # Pure checks, no pkgs: what evaluation can refuse.
    check = import ./check { inherit lib; };

    # The Python package over the libraries that a stage needs. `core` has no torch.
    enginix-core = import ./enginix.nix scope "core";
    enginix = import ./enginix.nix scope "runtime";

    # A Python with LiteLLM's proxy, and the gateway's command over it.
    gateway-python = pkgs.gateway-python or (import ./gateway-python.nix scope);
    enginix-gateway = import ./gateway-package.nix scope;

    # The private environment that builds over the CUDA stack source.
    environment = import ./environment.nix scope;

    # A tritonserver with the Python backend. nixpkgs has none; a package set may bring its own.
    tritonserver = pkgs.tritonserver-cpu or (import ./tritonserver-cpu.nix scope);

    # What fetches runtime images.
    crane = pkgs.crane or (throw "enginix: the package set has no crane, which fetches the images of runtimes");

    mkHfModel = import ./mk-hf-model.nix scope;
    mkHfDataset = import ./mk-hf-dataset.nix scope;
    mkCalibration = import ./mk-calibration.nix scope;
    mkQuantized = import ./mk-quantized.nix scope;
    mkCheckpoint = import ./mk-checkpoint.nix scope;
    mkReferenceAnswers = import ./mk-reference-answers.nix scope;
    mkComparison = import ./mk-comparison.nix scope;
    mkEngine = import ./mk-engine.nix scope;
    mkEngineMatrix = import ./mk-engine-matrix.nix scope;
    mkRuntime = import ./mk-runtime.nix scope;
    mkRunner = import ./mk-runner.nix scope;
    mkServe = import ./mk-serve.nix scope;
    mkTritonRepo = import ./mk-triton-repo.nix scope;
    mkTritonServer = import ./mk-triton-server.nix scope;
    mkOciImage = import ./mk-oci-image.nix scope;
    mkKubernetes = import ./mk-kubernetes.nix scope;
    mkGateway = import ./mk-gateway.nix scope;

    # name -> { model; checkpoint; engine; triton-repo; triton-server; }
    catalogue = import ./catalogue scope;
  };

  # Parts that a package set may bring and that have no place above: a Python with ModelOpt, one with NVIDIA's exporter, and
  # what has TensorRT beside it (docs/quantization.md, docs/edgellm.md).
  optional = [
    "modelopt-python"
    "edgellm-python"
    "edgellm-runtime"
  ];

  points = builtins.attrNames parts ++ optional;
  strange = builtins.filter (name: !builtins.elem name points) (builtins.attrNames overrides);
  checked =
    if strange == [ ] then
      overrides
    else
      throw "(mkLib pkgs).override: ${parts.check.names.unknown "part" (builtins.head strange) points}";

  scope =
    parts
    // checked
    // {
      override =
        more:
        import ./. {
          inherit pkgs;
          overrides = overrides // more;
        };
    };
in
scope
