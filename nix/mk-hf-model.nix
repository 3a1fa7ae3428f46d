# mkHfModel :: { lock, … } | { repo, revision, hash, … } -> derivation
#
# A model as a store path. From a lock: one flat fixed-output derivation a file, joined by links.
# From a hash: the whole repository as one recursive fixed-output derivation.
{
  lib,
  pkgs,
  check,
  ...
}@scope:
let
  function = "mkHfModel";
  hf = import ./hf-files.nix scope;
  inherit (hf) fetcher licenseOf titleOf;

  # The model in the layout of huggingface_hub's cache, for tools that take a repository name and
  # HF_HUB_CACHE.
  cacheOf =
    title: repo: revision: model:
    pkgs.stdenvNoCC.mkDerivation {
      name = "${title}-hf-cache";
      buildCommandPath = ./builders/hf-cache.sh;
      folder = "models--${builtins.replaceStrings [ "/" ] [ "--" ] repo}";
      inherit revision model;
      preferLocalBuild = true;
      allowSubstitutes = false;
    };

  fromLock =
    {
      lock,
      # Store name; the repository's name when not given.
      name ? null,
      # A package whose command serves this model on loopback, for models that come with a flake;
      # used when HF_ENDPOINT is not set. It is called with `--port-file FILE` and writes its
      # address there.
      hub ? null,
      ...
    }:
    let
      pinned = hf.parse function "model" lock;
      title = if name != null then name else titleOf pinned.repo;
      files = hf.filesOf pinned hub;
      model = hf.join {
        inherit title pinned files;
        passthru = {
          inherit (pinned) model repo;
          inherit hub;
          hfCache = cacheOf title pinned.repo pinned.revision model;
          modelName = title;
          # For the memory plan at evaluation.
          weightBytes = check.plan.weightBytes pinned.files;
          # For kinds that refuse a model by its files.
          fileNames = builtins.attrNames pinned.files;
          architecture = pinned.model.architecture or null;
          quantization = pinned.model.quantization or null;
        };
        meta.homepage = "https://huggingface.co/${pinned.repo}";
      };
    in
    model;

  fromHash =
    {
      repo,
      revision,
      hash,
      name ? null,
      hub ? null,
      license ? null,
      ...
    }:
    let
      title = if name != null then name else titleOf (check.lock.repo function repo);
      model = pkgs.stdenvNoCC.mkDerivation (
        fetcher
        // {
          name = "${title}-model";
          buildCommandPath = ./builders/fetch-tree.sh;
          outputHashMode = "recursive";
          outputHash = hash;
          repo = check.lock.repo function repo;
          revision = check.lock.revision function repo revision;
          hub = if hub == null then "" else lib.getExe hub;
          passthru = {
            inherit repo revision license;
            hfCache = cacheOf title repo revision model;
            modelName = title;
            # Unknown without a lock: evaluation then skips the checks that need them.
            files = { };
            model = { };
            architecture = null;
            quantization = null;
          };
          meta = {
            platforms = import ./systems.nix;
            description = "${repo} at ${builtins.substring 0 12 revision}";
            homepage = "https://huggingface.co/${repo}";
          }
          // licenseOf license;
        }
      );
    in
    model;
  known = builtins.attrNames (builtins.functionArgs fromLock // builtins.functionArgs fromHash);
in
arguments:
let
  args = check.arguments.only function known arguments;
in
if args ? lock && (args ? repo || args ? revision || args ? hash) then
  throw "${function}: pass either lock, or repo with revision and hash; a lock holds all three."
else if args ? lock then
  fromLock (check.arguments.whole function fromLock args)
else if args ? repo && args ? revision && args ? hash then
  fromHash (check.arguments.whole function fromHash args)
else
  throw ''
    ${function}: nothing pins the model. Do one of these:
      - mkHfModel { lock = ./model.lock.json; } with a lock written by
        `enginix lock owner/name -o model.lock.json`
      - mkHfModel { repo = "owner/name"; revision = "<commit>"; hash = "sha256-…"; }''
