# TensorRT for RTX, for GeForce RTX 30, 40 and 50, RTX PRO, A100, L4, L40S and GB10: built by
# NVIDIA's own builder in Nix's sandbox, without a GPU.
#
# The builder is not free software, and a plan has source text of NVIDIA's kernels in it: engines
# are marked unfree, and no cache is asked for them (docs/reference/rtx.md).
{
  lib,
  pkgs,
  check,
  environment,
  mkCheckpoint,
  rtx-python,
  ...
}@scope:
let
  artefactMeta = import ../../artefact-meta.nix { inherit lib; };
  commandWords = import ../../command-words.nix { inherit lib; };
  function = ''mkEngine { kind = "rtx"; }'';
  checks = import ./checks.nix scope;
  enginix = import ./package.nix scope;
  nvidiaLicence = {
    fullName = "NVIDIA TensorRT Software License Agreement";
    shortName = "LicenseRef-NVIDIA-TensorRT-SLA";
    free = false;
  };
in
{
  # mkHfModel's output, or mkQuantized's.
  model ? quantized,
  quantized ? checkpoint.model,
  checkpoint ? mkCheckpoint { inherit model; },
  # GPUs by name (`enginix target` lists them) or SMs, in one engine; null is every SM that the
  # number format allows. More of them cost nothing: kernels are compiled when the engine is loaded.
  targets ? null,
  # maxBatchSize, maxSeqLen, stepTokens (tokens of each sequence in a step); always written out.
  limits ? { },
  # A runtime of data/runtime/runtimes.json that has this kind.
  runtime ? "rtx-${checks.data.version.value}",
  # Memory of the machine that builds.
  buildMemoryGB ? 32,
  name ? checkpoint.modelName,
}:
let
  engine = "${name}-engine";
  facts = model.model or { };
  format = checks.format engine (model.quantization or null);
  sms = checks.targets engine format targets;
  sizes = checks.limits engine facts limits;
  # A plan of each target that is a part: an SM alone has no memory.
  plans = map (
    target:
    check.rtxPlan.fits engine (facts // { weightBytes = model.weightBytes or 0; }) (
      check.gpus.find function target
    ) sizes
  ) (builtins.filter builtins.isString (if targets == null then [ ] else targets));
  checked = builtins.deepSeq [
    (checks.architecture engine (facts.architecture or model.architecture or null))
    (checks.kvCache engine (facts.kvCacheQuantization or null))
    (checks.headSize engine (facts.headSize or null))
    (checks.ranks engine checkpoint)
    (checks.memory engine (model.weightBytes or 0) buildMemoryGB)
    (check.engine.runtime function (check.runtime.rows runtime) "rtx" { } (
      check.runtime.idOf function runtime
    )).id
    sizes
    sms
    plans
  ] true;
  flags = commandWords {
    sm = sms;
    max-batch-size = sizes.maxBatchSize;
    max-seq-len = sizes.maxSeqLen;
    step-tokens = sizes.stepTokens;
  };
  meta = artefactMeta model {
    description =
      "TensorRT for RTX engine of ${name}, SM " + lib.concatMapStringsSep ", " toString sms;
  };
  modelLicence = meta.license or [ ];
  modelLicences = if builtins.isList modelLicence then modelLicence else [ modelLicence ];
in
builtins.seq checked (
  pkgs.stdenvNoCC.mkDerivation {
    name = "${engine}-rtx";
    buildCommandPath = ../../builders/rtx-engine.sh;
    nativeBuildInputs = [ enginix ];
    inherit checkpoint model environment;
    engineName = name;
    flags = lib.escapeShellArgs flags;
    # Weights and tokenizer are in the engine.
    allowedReferences = [ ];
    allowSubstitutes = false;
    passthru = {
      inherit
        model
        checkpoint
        runtime
        ;
      kind = "rtx";
      modelName = name;
      targets = sms;
      limits = sizes;
      # What serves it: the environment that built it. On a GPU its PyTorch must have CUDA
      # (docs/how-to/environments.md).
      servingPython = rtx-python;
    };
    meta = meta // {
      license = modelLicences ++ [ nvidiaLicence ];
    };
  }
)
