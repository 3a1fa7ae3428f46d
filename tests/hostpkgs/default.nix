# The package set: the host's tools under /usr, and wheels that pip fetches.
# Builds are ordinary derivations; only what they find on PATH differs from nixpkgs.
{
  system,
  # As nixpkgs has it; licences are not checked here.
  config ? { },
  # tests/nix puts nixpkgs' own lib there, to evaluate against the real one.
  lib ? if builtins.pathExists ./nixpkgs-lib then import ./nixpkgs-lib else import ./lib.nix,
}:
let

  # Adds attributes without changing what is built.
  extend = drv: extra: drv // extra // { out = drv // extra; };

  mkDerivation =
    {
      name ? "${args.pname}-${args.version}",
      # Of the phases, the one in which nix/ says everything.
      installPhase ? throw "${name}: no buildCommand, and no installPhase",
      buildCommandPath ? null,
      buildCommand ? if buildCommandPath == null then installPhase else "source ${buildCommandPath}",
      nativeBuildInputs ? [ ],
      passthru ? { },
      meta ? { },
      ...
    }@args:
    extend
      (derivation (
        builtins.removeAttrs args [
          "buildCommandPath"
          "installPhase"
          "nativeBuildInputs"
          "passthru"
          "meta"
        ]
        // {
          inherit name system buildCommand;
          builder = "/bin/bash";
          args = [ ./builder.sh ];
          # As nixpkgs' stdenv has it: a home that does not exist.
          HOME = "/homeless-shelter";
          PATH = lib.concatStringsSep ":" (map (p: "${p}/bin") nativeBuildInputs ++ [ "/usr/bin:/bin" ]);
        }
      ))
      (
        {
          inherit meta name nativeBuildInputs;
        }
        // passthru
      );

  runCommand =
    name: attrs: buildCommand:
    mkDerivation (attrs // { inherit name buildCommand; });

  link =
    name: target: attrs:
    runCommand name attrs "ln -s ${target} $out";

  # A wheel by pip, from where this machine's pip finds it; `url` is asked next, if there is one.
  fetchWheel =
    {
      name,
      sha256,
      url ? "",
    }:
    mkDerivation {
      inherit name url sha256;
      buildCommandPath = ./fetch-wheel.sh;
      outputHashMode = "flat";
      outputHashAlgo = "sha256";
      outputHash = sha256;
      # pip's configuration and the way to the network (nix-config.sh lets files in).
      impureEnvVars = lib.fetchers.proxyImpureEnvVars ++ [
        "PIP_CERT"
        "PIP_CONFIG_FILE"
        "PIP_DEFAULT_TIMEOUT"
        "PIP_EXTRA_INDEX_URL"
        "PIP_FIND_LINKS"
        "PIP_INDEX_URL"
        "PIP_NO_INDEX"
        "PIP_PROXY"
        "PIP_RETRIES"
        "PIP_TRUSTED_HOST"
      ];
    };

  host = link "host" "/usr" { };

  # The host's own interpreter, if it is the one that the wheels are for.
  python311 =
    runCommand "python3-3.11" { meta.mainProgram = "python3"; } ''
      version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
      if [ "$version" != 3.11 ]; then
        echo "error: /usr/bin/python3 is Python $version, and the wheels are for 3.11; over this package set enginix runs on Debian 12" >&2
        exit 1
      fi
      ln -s /usr $out
    ''
    // {
      pythonVersion = "3.11";
    };
in
{
  inherit lib system runCommand;
  stdenvNoCC = {
    inherit mkDerivation;
    hostPlatform = {
      inherit system;
      isx86_64 = system == "x86_64-linux";
    };
  };
  inherit python311;
  python3 = python311;
  stdenv = {
    inherit mkDerivation;
    hostPlatform = {
      inherit system;
      isx86_64 = system == "x86_64-linux";
    };
    cc = host // {
      cc.lib = host;
    };
  };
  # What a wheel needs besides is where the host's loader looks.
  zlib = host;
  autoPatchelfHook = runCommand "auto-patchelf-hook" { } "mkdir $out";
  fetchPypi =
    {
      pname,
      version,
      format,
      python,
      abi,
      platform,
      dist,
      sha256,
    }:
    fetchWheel {
      name = "${pname}-${version}-${python}-${abi}-${platform}.whl";
      inherit sha256;
    };
  fetchurl = fetchWheel;
  bash = link "bash" "/usr" { };
  bubblewrap = link "bubblewrap" "/usr" { };
  cacert = runCommand "cacert" { } "mkdir -p $out/etc/ssl/certs; ln -s /etc/ssl/certs/ca-certificates.crt $out/etc/ssl/certs/ca-bundle.crt";
  writeText =
    name: text:
    builtins.toFile name (builtins.unsafeDiscardStringContext text);
  # Images as nixpkgs streams them, of the store alone (stream-image.py).
  dockerTools.streamLayeredImage =
    {
      name,
      tag ? null,
      config,
      contents ? [ ],
      extraCommands ? "",
      maxLayers ? 100,
      fromImage ? throw "the stand-in has no images to stand on",
    }:
    let
      words = runCommand "image-config" {
        text = builtins.toJSON config;
        passAsFile = [ "text" ];
      } "cp $textPath $out";
      spec =
        runCommand "image-spec"
          {
            # Everything that the configuration names, with what that needs.
            exportReferencesGraph = [
              "closure"
              words
            ];
            inherit words extraCommands maxLayers;
            tag = "${name}:${if tag == null then "standin" else tag}";
          }
          ''
            mkdir $out extra
            (cd extra && eval "$extraCommands")
            # Here, because the store keeps no modes.
            tar --sort=name --mtime=@1 --owner=0 --group=0 --numeric-owner -C extra -cf $out/extra.tar $(ls -A extra)
            python3 - <<'PY'
            import json, os
            lines = {line.strip() for line in open("closure")}
            closure = sorted(l for l in lines if l.startswith("/nix/store/") and l != os.environ["words"])
            out = os.environ["out"]
            spec = {"closure": closure, "extra": f"{out}/extra.tar", "tag": os.environ["tag"]}
            spec |= {"maxLayers": int(os.environ["maxLayers"]), "config": json.load(open(os.environ["words"]))}
            json.dump(spec, open(f"{out}/spec.json", "w"), sort_keys=True)
            PY
          '';
    in
    runCommand "stream-${baseNameOf name}" { inherit contents; } ''
      printf '#!/bin/bash\nexec python3 %s %s/spec.json\n' ${./stream-image.py} ${spec} >$out
      chmod +x $out
    '';
  mkShellNoCC = attrs: mkDerivation (attrs // { name = "shell"; buildCommand = "touch $out"; });
  nixfmt-tree = link "nixfmt-tree" "/usr" { };
  ruff = host;
  mypy = host;
  shellcheck = link "shellcheck" "/usr" { };
}
