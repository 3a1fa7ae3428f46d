# What mkHfModel and mkHfDataset share: a lock's files, one flat fixed-output derivation each, and
# their join by links.
{
  lib,
  pkgs,
  check,
  enginix-core,
  ...
}:
rec {
  # HF_ENDPOINT and HF_TOKEN reach fixed-output builds only, from the environment of the building
  # process: the caller's in a single-user installation, nix-daemon's otherwise.
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

  # A lock's content, every field that Nix relies on checked.
  # parse :: string -> string -> path | set -> set
  parse =
    function: type: lock:
    let
      where = if builtins.isPath lock || builtins.isString lock then toString lock else "lock";
      isFile = builtins.isPath lock || builtins.isString lock && lib.hasPrefix "/" lock;
      pinned = check.lock.parse where (
        if builtins.isAttrs lock then
          lock
        else if isFile then
          lib.importJSON lock
        else
          throw (
            "${function}: lock is ${check.arguments.describe lock}, not the file that "
            + "`enginix lock` wrote, nor its content."
          )
      );
      functionFor = {
        model = "mkHfModel";
        dataset = "mkHfDataset";
      };
      dataset = lib.optionalString (type == "dataset") "--dataset ";
      file = baseNameOf where;
    in
    if builtins.isPath lock && !builtins.pathExists lock then
      throw ''
        ${function}: there is no lock ${where}. Write it, and add it to git: a flake in
        a git repository sees only the files that git tracks.
          nix run github:enginix/enginix#enginix-core -- lock ${dataset}OWNER/NAME -o ${file}
          git add ${file}''
    else if pinned.type != type then
      throw (
        "${function}: ${where} is the lock of a ${pinned.type}; "
        + "use ${functionFor.${pinned.type}}."
      )
    else if type == "dataset" && pinned.model != { } then
      throw (
        "${function}: ${where}: a dataset has no facts of a model; "
        + "write the lock again with `enginix lock`."
      )
    else
      pinned;

  titleOf = repo: lib.toLower (lib.strings.sanitizeDerivationName (baseNameOf repo));

  licenseOf = id: lib.optionalAttrs (id != null) { license = check.license.named id; };

  # pinned -> hub -> path -> derivation. Named after the file alone: equal files of two repositories
  # or two revisions are one store path.
  filesOf =
    pinned: hub:
    builtins.mapAttrs (
      _: file:
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
          flags = lib.optionalString (pinned.type == "dataset") "--dataset";
          hub = if hub == null then "" else lib.getExe hub;
        }
      )
    ) pinned.files;

  # The facts of a lock as a file, which exists only if they are those of the pinned configuration.
  # Its path depends on facts and configuration alone: a change of enginix builds no model again.
  # factsOf :: set -> set -> derivation
  factsOf =
    pinned: files:
    let
      facts = builtins.toJSON pinned.model;
      configuration = lib.filterAttrs (path: _: builtins.elem path configFiles) pinned.files;
      id = builtins.hashString "sha256" (
        facts + builtins.toJSON (builtins.mapAttrs (_: f: f.sha256) configuration)
      );
    in
    pkgs.stdenvNoCC.mkDerivation {
      name = "facts-${builtins.substring 0 32 id}";
      buildCommandPath = ./builders/check-facts.sh;
      outputHashMode = "flat";
      outputHashAlgo = "sha256";
      outputHash = builtins.hashString "sha256" facts;
      nativeBuildInputs = [ enginix-core ];
      inherit facts;
      inherit (pinned) repo;
      config = files."config.json" or "";
      modelopt = files."hf_quant_config.json" or "";
      preferLocalBuild = true;
      # A cache has the file, and not that it was compared.
      allowSubstitutes = false;
    };
  configFiles = [
    "config.json"
    "hf_quant_config.json"
  ];

  # A manifest's text, with the digest that it has of itself (python/enginix/manifest.py).
  # manifestOf :: set -> string
  manifestOf =
    content:
    let
      textOf = digest: builtins.toJSON (content // { inherit digest; });
      zeros = builtins.concatStringsSep "" (builtins.genList (_: "0") 64);
    in
    textOf (builtins.hashString "sha256" (textOf zeros));

  # A directory of links with its manifest.
  join =
    {
      title,
      pinned,
      files,
      passthru,
      meta,
    }:
    pkgs.stdenvNoCC.mkDerivation {
      name = "${title}-${pinned.type}";
      buildCommandPath = ./builders/join-files.sh;
      # path, newline, store path, newline, …
      links = lib.concatLines (
        builtins.concatLists (
          lib.mapAttrsToList (path: file: [
            path
            "${file}"
          ]) files
        )
      );
      manifest = manifestOf {
        format = 2;
        artefact = pinned.type;
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
        files = builtins.mapAttrs (_: f: { inherit (f) sha256 size; }) pinned.files;
      };
      checked = lib.optionalString (pinned.model != { }) "${factsOf pinned files}";
      passAsFile = [
        "links"
        "manifest"
      ];
      preferLocalBuild = true;
      allowSubstitutes = false;
      passthru = {
        inherit (pinned) repo revision license gated;
        inherit files;
      }
      // passthru;
      meta = {
        platforms = import ./systems.nix;
        description = "${pinned.repo} at ${builtins.substring 0 12 pinned.revision}";
      }
      // meta
      // licenseOf pinned.license;
    };
}
