# Table of contents: pkgs -> the functions that turn a Hugging Face model into a served deployment.
#
#   enginix.lib.mkLib pkgs
#
# Everything is one scope: `(mkLib pkgs).override { tritonserver = …; }` swaps a part for all that
# use it.
{
  pkgs,
  overrides ? { },
}:
let
  inherit (pkgs) lib;

  parts = {
    inherit lib pkgs;

    # How evaluation prints a warning: text -> value -> value.
    inherit (lib) warn;

    # Pure checks, no pkgs: what evaluation can refuse.
    check = import ./check { inherit lib; };

    # The interpreter of all Python code; nix/python/default.nix gives the reason for 3.11.
    python =
      pkgs.python311
        or (throw (
          "enginix: the package set has no python311. Pass a Python 3.11: "
          + "(mkLib pkgs).override { python = …; }."
        ));

    # PyTorch of the environments that have it. null takes the CPU wheel of the locks, which is free
    # software. Else a package, { file; sha256; url ? null; license ? [ ]; } of a wheel, or a list
    # of these: what replaces it and comes besides.
    torch = null;

    # The environments, each a derivation whose bin/python3 has the wheels of nix/python/locks. A
    # Python of nixpkgs' own packages may replace each.
    core-python = import ./python scope "core";
    runtime-python = import ./python scope "runtime";
    modelopt-python = import ./python scope "modelopt";
    edgellm-python = import ./python scope "edgellm";
    rtx-python = import ./python scope "rtx"; # unfree: NVIDIA's TensorRT for RTX
    gateway-python = import ./python scope "gateway";
    availability = import ./python/availability.nix scope;

    # The Python package over the libraries that a stage needs. `core` has no torch.
    enginix-core = import ./enginix.nix scope "core";
    enginix = import ./enginix.nix scope "runtime";

    # The gateway's command over LiteLLM's proxy.
    enginix-gateway = import ./gateway-package.nix scope;

    # Every command over the libraries of an extra of the Python package, for people: stages take
    # smaller packages.
    enginix-quantize = import ./enginix.nix scope "modelopt";
    enginix-edgellm = import ./enginix.nix scope "edgellm";
    enginix-rtx = import ./enginix.nix scope "rtx"; # unfree

    # The private environment that builds over the CUDA stack source.
    environment = import ./environment.nix scope;

    # A tritonserver with the Python backend. nixpkgs has none.
    tritonserver = import ./tritonserver-cpu.nix scope;

    # What fetches runtime images.
    crane =
      pkgs.crane
        or (throw "enginix: the package set has no crane, which fetches the images of runtimes");

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
    mkPinned = import ./mk-pinned.nix scope;

    # name -> { model; checkpoint; engine; triton-repo; triton-server; }
    catalogue = import ./catalogue scope;
  };

  # What has TensorRT beside NVIDIA's exporter is in no package set (docs/reference/edgellm.md).
  optional = [ "edgellm-runtime" ];

  points = builtins.attrNames parts ++ optional;
  unknownParts = builtins.filter (name: !builtins.elem name points) (builtins.attrNames overrides);
  knownOverrides =
    if unknownParts == [ ] then
      overrides
    else
      throw (
        "(mkLib pkgs).override: "
        + "${parts.check.names.unknown "part" (builtins.head unknownParts) points}"
      );

  scope =
    parts
    // knownOverrides
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
