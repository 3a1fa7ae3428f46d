# A package set that answers as nixpkgs does where that decides whether enginix evaluates: called as
# nixpkgs is, with the checks of its check-meta (licences, platforms, names of meta), its Python
# sets by attribute, and none of the packages that enginix' own stand-in brings. Nothing of it can
# be built.
#
# Facts: pkgs/stdenv/generic/check-meta.nix, pkgs/development/interpreters/python of nixpkgs.
{
  system,
  config ? { },
  overlays ? [ ],
  lib ? import ./lib.nix,
}:
let
  fix =
    f:
    let
      x = f x;
    in
    x;
  toList = value: if builtins.isList value then value else [ value ];

  # A set without `free` counts as free, in a list as unfree; compound licences have their own
  # function.
  isUnfree =
    licence:
    if builtins.isList licence then
      builtins.any (l: !(l.free or false)) licence
    else if builtins.isString licence then
      false
    else if licence ? licenseType then
      !(lib.licenses.isFree licence)
    else
      !(licence.free or true);

  # Names that check-meta knows; nixpkgs' own CI refuses others.
  metaNames = [
    "available"
    "badPlatforms"
    "branch"
    "broken"
    "changelog"
    "description"
    "donationPage"
    "downloadPage"
    "homepage"
    "hydraPlatforms"
    "identifiers"
    "knownVulnerabilities"
    "license"
    "longDescription"
    "mainProgram"
    "maintainers"
    "name"
    "outputsToInstall"
    "platforms"
    "position"
    "priority"
    "schedulingPriority"
    "sourceProvenance"
    "teams"
    "timeout"
    "unfree"
    "version"
  ];

  licenceName = l: if builtins.isString l then l else l.shortName or l.fullName or "unknown";

  # null, or why nixpkgs refuses the package.
  # refusal :: set -> null | string
  refusal =
    attrs:
    let
      meta = attrs.meta or { };
      strange = builtins.filter (n: !builtins.elem n metaNames) (builtins.attrNames meta);
      unfree = meta ? license && isUnfree meta.license;
      allowed =
        config.allowUnfree or false
        || builtins.getEnv "NIXPKGS_ALLOW_UNFREE" == "1"
        || (config.allowUnfreePredicate or (_: false)) attrs;
      blocklist = config.blocklistedLicenses or [ ];
      blocked = builtins.any (l: builtins.elem l blocklist) (toList (meta.license or [ ]));
    in
    if strange != [ ] then
      "has an invalid meta attrset: ${builtins.head strange}"
    else if unfree && !allowed then
      "has an unfree license (‘${toString (map licenceName (toList meta.license))}’)"
    else if meta ? license && blocked then
      "has a blocklisted license (‘${toString (map licenceName (toList meta.license))}’)"
    else if meta ? platforms && !builtins.elem system meta.platforms then
      "is not available on the requested hostPlatform: hostPlatform.system = \"${system}\""
    else
      null;

  bootstrap = builtins.derivation {
    name = "bash";
    inherit system;
    builder = "/nothing/of/this/set/can/be/built";
  };

  # stdenv.mkDerivation: the checks are made where a derivation's path is asked for, not where it is
  # described.
  mkDerivation =
    argument:
    let
      args = if builtins.isFunction argument then fix argument else argument;
      name = args.name or "${args.pname}-${args.version}";
      reason = refusal (args // { inherit name; });
      checked =
        value:
        if reason == null then
          value
        else
          throw "Refusing to evaluate package '${name}' because it ${reason}.";
      inputs = builtins.concatLists (
        map (n: args.${n} or [ ]) [
          "buildInputs"
          "nativeBuildInputs"
          "propagatedBuildInputs"
        ]
      );
      isInput =
        i: i == null || builtins.isPath i || builtins.isString i || i.type or null == "derivation";
      strange = builtins.filter (i: !isInput i) inputs;
      drv = builtins.derivation (
        builtins.removeAttrs args [
          "env"
          "meta"
          "passthru"
          "pos"
        ]
        // args.env or { }
        // {
          inherit name system;
          builder = "${bootstrap}/bin/bash";
          args = [ "-e" ];
          outputs = args.outputs or [ "out" ];
        }
      );
      passthru = args.passthru or { };
      result =
        drv
        // passthru
        // {
          inherit name passthru;
          inherit (drv) type outputName;
          meta = {
            inherit name;
            available = reason == null;
            unfree = args ? meta.license && isUnfree args.meta.license;
          }
          // args.meta or { };
          drvPath = checked drv.drvPath;
          outPath = checked drv.outPath;
          out = result;
          overrideAttrs =
            f:
            mkDerivation (
              if builtins.isFunction argument then
                self:
                let
                  old = argument self;
                in
                old // f old
              else
                args // (if builtins.isFunction (f args) then f args args else f args)
            );
        };
    in
    if strange != [ ] then
      throw "Dependency is not of a valid type: an input of '${name}'"
    else if args ? meta && !(builtins.isAttrs args.meta) then
      throw "meta of '${name}' is not an attribute set"
    else
      result;

  package = name: attrs: mkDerivation ({ inherit name; } // attrs);
  licensed = license: { meta.license = license; };

  # { pname, version, … } and a hash, as a fixed-output derivation.
  fetched =
    name: hash:
    mkDerivation {
      inherit name;
      outputHashMode = "flat";
      outputHashAlgo = if builtins.match "sha256-.*" hash != null then null else "sha256";
      outputHash = hash;
    };
  hashOf =
    where: args:
    if args.hash or "" != "" then
      args.hash
    else if args.sha256 or "" != "" then
      args.sha256
    else
      throw "${where}: no hash";

  fetchurl =
    {
      url ? "",
      urls ? [ url ],
      name ? baseNameOf (builtins.head urls),
      hash ? "",
      sha256 ? "",
      meta ? { },
      passthru ? { },
      curlOpts ? "",
      curlOptsList ? [ ],
      downloadToTemp ? false,
      executable ? false,
      postFetch ? "",
      netrcPhase ? null,
      netrcImpureEnvVars ? [ ],
      nativeBuildInputs ? [ ],
      preferLocalBuild ? true,
      recursiveHash ? false,
      showURLs ? false,
    }@args:
    if urls == [ "" ] then throw "fetchurl: no url" else fetched name (hashOf "fetchurl" args);

  fetchPypi =
    {
      pname,
      version,
      format ? "setuptools",
      sha256 ? "",
      hash ? "",
      dist ? "py2.py3",
      python ? "py2.py3",
      abi ? "none",
      platform ? "any",
      extension ? "tar.gz",
    }@args:
    fetched (
      if format == "wheel" then
        "${pname}-${version}-${python}-${abi}-${platform}.whl"
      else
        "${pname}-${version}.${extension}"
    ) (hashOf "fetchPypi" args);

  pythonNames = [
    "av"
    "ninja"
    "nvidia-ml-py"
    "omegaconf"
    "pulp"
    "python-multipart"
    "regex"
    "rich"
    "scipy"
    "fastapi"
    "httpx"
    "huggingface-hub"
    "jinja2"
    "ml-dtypes"
    "numpy_1"
    "numpy_2"
    "onnx"
    "onnxscript"
    "orjson"
    "packaging"
    "protobuf"
    "pydantic"
    "python-rapidjson"
    "pyyaml"
    "requests"
    "safetensors"
    "setuptools"
    "tokenizers"
    "tqdm"
    "transformers"
    "uvicorn"
    "uvloop"
  ];

  interpreter =
    version: overrides:
    let
      libPrefix = "python${version}";
      py =
        name: attrs:
        package "${libPrefix}-${name}-1" (
          {
            pname = name;
            version = "1";
          }
          // attrs
        );
      plain = lib.genAttrs pythonNames (name: py name { });
      base = plain // {
        python = self;
        requiredPythonModules = list: list;
        numpy = plain.numpy_2;
        torch = py "torch" (licensed lib.licenses.bsd3);
        torch-bin = py "torch-bin" (licensed [
          lib.licenses.bsd3
          lib.licenses.issl
          lib.licenses.unfreeRedistributable
        ]);
        tritonclient = py "tritonclient" (licensed lib.licenses.bsd3) // {
          optional-dependencies.grpc = [ plain.packaging ];
        };
        litellm = py "litellm" (licensed lib.licenses.mit) // {
          optional-dependencies.proxy = [ plain.uvicorn ];
        };
        buildPythonPackage =
          args:
          mkDerivation (
            builtins.removeAttrs args [
              "dependencies"
              "format"
              "pyproject"
              "build-system"
              "pythonRelaxDeps"
              "pythonRemoveDeps"
              "pythonImportsCheck"
              "optional-dependencies"
            ]
            // {
              propagatedBuildInputs = args.dependencies or [ ];
            }
          );
      };
      packages = base // overrides (base // overrides base base) base;
      self =
        package "python3-${version}" {
          meta = {
            license = lib.licenses.psfl or lib.licenses.bsd3;
            mainProgram = libPrefix;
          };
        }
        // {
          inherit libPrefix;
          pythonVersion = version;
          sitePackages = "lib/${libPrefix}/site-packages";
          interpreter = "${self}/bin/${libPrefix}";
          executable = libPrefix;
          pkgs = packages;
          override = { packageOverrides ? (_: _: { }), ... }: interpreter version packageOverrides;
          withPackages =
            select:
            package "python3-${version}-env" {
              paths = select packages;
              meta.mainProgram = "python3";
            };
        };
    in
    self;

  hostPlatform = {
    inherit system;
    isLinux = true;
    isDarwin = false;
    isx86_64 = system == "x86_64-linux";
    isAarch64 = system == "aarch64-linux";
    config = builtins.replaceStrings [ "-linux" ] [ "-unknown-linux-gnu" ] system;
    parsed.cpu.name = builtins.head (builtins.split "-" system);
  };
  stdenv = {
    inherit mkDerivation hostPlatform system;
    buildPlatform = hostPlatform;
    isLinux = true;
    cc = package "gcc-wrapper" { } // {
      cc = package "gcc" { } // {
        lib = package "gcc-lib" { };
      };
      bintools = package "binutils-wrapper" { } // {
        dynamicLinker = "/nix/store/x-glibc/lib/ld-linux.so.2";
      };
    };
  };

  tools = lib.genAttrs [
    "autoPatchelfHook"
    "bash"
    "bubblewrap"
    "cacert"
    "coreutils"
    "crane"
    "expat"
    "findutils"
    "glibc"
    "gnugrep"
    "gnused"
    "gnutar"
    "jq"
    "kubectl"
    "makeWrapper"
    "mypy"
    "nix"
    "nixfmt-tree"
    "openssl"
    "patchelf"
    "python3Minimal"
    "ruff"
    "shellcheck"
    "systemd"
    "unzip"
    "xz"
    "zlib"
    "zstd"
  ] (name: package name { meta.mainProgram = name; });

  packages = tools // {
    inherit
      lib
      system
      stdenv
      fetchurl
      fetchPypi
      config
      ;
    stdenvNoCC = stdenv // {
      cc = null;
    };
    autoPatchelfHook = tools.autoPatchelfHook;
    zlib = tools.zlib // {
      dev = package "zlib-dev" { };
    };
    python311 = interpreter "3.11" (_: _: { });
    python312 = interpreter "3.12" (_: _: { });
    python313 = interpreter "3.13" (_: _: { });
    python3 = packages.python313;
    python311Packages = packages.python311.pkgs;
    python312Packages = packages.python312.pkgs;
    python313Packages = packages.python313.pkgs;
    python3Packages = packages.python3.pkgs;
    runCommand = name: attrs: buildCommand: mkDerivation (attrs // { inherit name buildCommand; });
    runCommandLocal = packages.runCommand;
    symlinkJoin = { name, paths, ... }@args: mkDerivation (args // { inherit name paths; });
    linkFarm = name: _: package name { };
    writeText =
      name: text:
      mkDerivation {
        inherit name text;
        passAsFile = [ "text" ];
      };
    writeShellScript = packages.writeText;
    writeShellApplication =
      { name, text, ... }:
      package name {
        inherit text;
        meta.mainProgram = name;
      };
    mkShell = attrs: mkDerivation (attrs // { name = attrs.name or "nix-shell"; });
    mkShellNoCC = packages.mkShell;
    dockerTools = {
      streamLayeredImage =
        {
          name,
          tag ? null,
          config ? { },
          contents ? [ ],
          extraCommands ? "",
          maxLayers ? 100,
          fromImage ? null,
        }:
        package "stream-${baseNameOf name}" {
          inherit contents extraCommands fromImage;
          configuration = builtins.toJSON config;
        };
      pullImage =
        { imageName, imageDigest, sha256, ... }:
        package "docker-image-${baseNameOf imageName}.tar" { } // { inherit imageName; };
    };
  }
  # Modules are of nixpkgs' own lib.
  // lib.optionalAttrs (lib ? evalModules) {
    testers.runNixOSTest = import ./nixos-test.nix {
      inherit lib;
      pkgs = result;
    };
  };
  result = builtins.foldl' (set: overlay: set // overlay result set) packages overlays;
in
result
