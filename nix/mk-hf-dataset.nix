# mkHfDataset :: { lock, … } -> derivation
#
# A dataset of the Hub as a store path, pinned as a model is: text for mkCalibration.
{ check, ... }@scope:
let
  function = "mkHfDataset";
  hf = import ./hf-files.nix scope;
  build =
    {
      # Written by `enginix lock --dataset`: a path, or its content.
      lock ? missingLock,
      # Store name; the repository's name when not given.
      name ? null,
      # A package whose command serves this dataset on loopback, for datasets that come with a
      # flake; as mkHfModel's.
      hub ? null,
    }:
    let
      pinned = hf.parse function "dataset" lock;
      title = if name != null then name else hf.titleOf pinned.repo;
    in
    builtins.seq lock (
      hf.join {
        inherit title pinned;
        files = hf.filesOf pinned hub;
        passthru = {
          inherit hub;
          datasetName = title;
        };
        meta.homepage = "https://huggingface.co/datasets/${pinned.repo}";
      }
    );
  missingLock = throw (
    "${function}: nothing pins the dataset: pass lock = ./texts.lock.json, written by "
    + "`enginix lock --dataset owner/name -o texts.lock.json`."
  );
in
check.arguments.call function build
