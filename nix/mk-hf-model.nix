# mkHfModel :: { lock, … } | { repo, revision, hash, … } -> derivation
#
# A model as a store path. From a lock: one flat fixed-output derivation a file, joined by links. From a
# hash: the whole repository as one recursive fixed-output derivation.
{
  lib,
  pkgs,
  check,
  enginix-core,
  ...
}:
let
  function = "mkHfModel";

  known = [
    "lock"
    "repo"
    "revision"
    "hash"
    "name"
    "hub"
    "license"
  ];

  # HF_ENDPOINT and HF_TOKEN reach fixed-output builds only, from the environment of whoever builds: the
  # caller's in a single-user installation, nix-daemon's otherwise.
  fetcher = {
    nativeBuildInputs = [ enginix-core ];
    hubSetup = ./builders/hub.sh;
    SSL_CERT_FILE = "${pkgs.cacert}/etc/ssl/certs/ca-bundle.crt";
    impureEnvVars = lib.fetchers.proxyImpureEnvVars ++ [
      "HF_ENDPOINT"
      "HF_TOKEN"
    ];
    preferLocalBuild = true;
  };

  # The model as huggingface_hub's cache has it, for tools that take a repository name and HF_HUB_CACHE.
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

  licenseOf = id: if id == null then { } else { license = lib.getLicenseFromSpdxIdOr id { fullName = id; free = false; }; };

  fromLock =
    {
      lock,
      # Store name; the repository's name when not given.
      name ? null,
      # A package whose command serves this model on loopback, for models that come with a flake; used when HF_ENDPOINT
      # is not set. It is called with `--port-file FILE` and writes its address there.
      hub ? null,
      ...
    }:
    let
      where = if builtins.isPath lock || builtins.isString lock then toString lock else "lock";
      pinned = check.lock.parse where (if builtins.isAttrs lock then lock else lib.importJSON lock);
      title = if name != null then name else lib.toLower (lib.strings.sanitizeDerivationName (baseNameOf pinned.repo));

      # Named after the file alone: equal files of two models or two revisions are one store path.
      fetch =
        file:
        pkgs.stdenvNoCC.mkDerivation (
          fetcher
          // {
            name = lib.strings.sanitizeDerivationName (baseNameOf file.path);
            buildCommandPath = ./builders/fetch-file.sh;
            outputHashMode = "flat";
            outputHashAlgo = "sha256";
            outputHash = file.sha256;
            inherit (pinned) repo revision;
            inherit (file) path sha256;
            size = toString file.size;
            hub = if hub == null then "" else lib.getExe hub;
          }
        );
      files = builtins.mapAttrs (_: fetch) pinned.files;

      manifest = {
        format = 1;
        artefact = "model";
        name = title;
        kind = null;
        inherit (pinned) model;
        inputs = {
          inherit (pinned) repo revision license;
          files = builtins.mapAttrs (_: f: f.sha256) pinned.files;
        };
        options = { };
        target = { };
        runtime = { };
        tools.enginix = enginix-core.version;
        results = { };
      };

      model = pkgs.stdenvNoCC.mkDerivation {
        name = "${title}-model";
        buildCommandPath = ./builders/join-files.sh;
        # path, newline, store path, newline, …
        links = lib.concatLines (
          builtins.concatLists (lib.mapAttrsToList (path: file: [ path "${file}" ]) files)
        );
        manifest = builtins.toJSON manifest;
        passAsFile = [
          "links"
          "manifest"
        ];
        preferLocalBuild = true;
        allowSubstitutes = false;
        passthru = {
          inherit (pinned) repo revision license model gated;
          inherit files hub;
          hfCache = cacheOf title pinned.repo pinned.revision model;
          modelName = title;
          # For the memory plan at evaluation.
          weightBytes = check.plan.weightBytes pinned.files;
          architecture = pinned.model.architecture or null;
          quantization = pinned.model.quantization or null;
        };
        meta = {
          description = "${pinned.repo} at ${builtins.substring 0 12 pinned.revision}";
          homepage = "https://huggingface.co/${pinned.repo}";
        }
        // licenseOf pinned.license;
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
      title = if name != null then name else lib.toLower (lib.strings.sanitizeDerivationName (baseNameOf repo));
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
            # Unknown without a lock: evaluation then checks what it can.
            files = { };
            model = { };
            architecture = null;
            quantization = null;
          };
          meta = {
            homepage = "https://huggingface.co/${repo}";
          }
          // licenseOf license;
        }
      );
    in
    model;
in
arguments:
let
  args = check.arguments.only function known arguments;
in
if args ? lock && (args ? repo || args ? revision || args ? hash) then
  throw "${function}: pass either lock, or repo with revision and hash; a lock holds all three."
else if args ? lock then
  fromLock args
else if args ? repo && args ? revision && args ? hash then
  fromHash args
else
  throw ''
    ${function}: nothing pins the model. Do one of these:
      - mkHfModel { lock = ./model.lock.json; } with a lock written by `enginix lock owner/name -o model.lock.json`
      - mkHfModel { repo = "owner/name"; revision = "<commit>"; hash = "sha256-…"; }''
