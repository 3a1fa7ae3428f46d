# The package set: host tools under /usr, Python environments under /opt/enginix (environments.sh).
# Builds are ordinary derivations; only what they find on PATH differs from nixpkgs.
{
  system,
  lib ? import ./lib.nix,
}:
let

  # Environments carry the hash of their lock in their path, so a changed lock changes every derivation.
  environment =
    name:
    "/opt/enginix/${name}-${
      builtins.substring 0 12 (builtins.hashFile "sha256" (./requirements + "/${name}.txt"))
    }";

  # Adds attributes without changing what is built.
  extend = drv: extra: drv // extra // { out = drv // extra; };

  mkDerivation =
    {
      name,
      buildCommandPath ? throw "${name}: no buildCommand",
      buildCommand ? "source ${buildCommandPath}",
      nativeBuildInputs ? [ ],
      passthru ? { },
      meta ? { },
      ...
    }@args:
    extend
      (derivation (
        builtins.removeAttrs args [
          "buildCommandPath"
          "nativeBuildInputs"
          "passthru"
          "meta"
        ]
        // {
          inherit system buildCommand;
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

  # nixpkgs picks packages by name out of `ps`; here there are two environments to pick from.
  withPackages =
    select:
    let
      wanted = select (lib.genAttrs [ "huggingface-hub" "safetensors" "numpy" "ml-dtypes" "torch" "transformers" "tritonclient" ] (n: n));
      chosen = if builtins.elem "torch" wanted then "runtime" else "core";
    in
    link "python3-${chosen}" (environment chosen) { meta.mainProgram = "python3"; };
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
  python3 = link "python3" "/usr" { meta.mainProgram = "python3"; } // {
    inherit withPackages;
  };
  # Whatever is asked of its packages, they are the environment's.
  python312 = {
    override = _: { inherit withPackages; };
  };
  # NVIDIA's exporter and the companions that it pins (nix/nvidia-edgellm.nix over nixpkgs).
  edgellm-python = link "python3-edgellm" (environment "edgellm") { meta.mainProgram = "python3"; };
  # NVIDIA's quantizer (nix/nvidia-modelopt.nix over nixpkgs).
  modelopt-python = link "python3-modelopt" (environment "modelopt") { meta.mainProgram = "python3"; };
  # LiteLLM and what its proxy imports (nix/gateway-python.nix over nixpkgs).
  gateway-python = link "python3-gateway" (environment "gateway") { meta.mainProgram = "python3"; };
  # The CPU build of tritonserver inside nvidia-pytriton's wheel, unpacked by pip.
  tritonserver-cpu = runCommand "tritonserver-cpu-2.51.0" {
    wheel = "${environment "runtime"}/lib/python3.11/site-packages/pytriton/tritonserver";
    pythonVersion = "3.11";
    passthru.version = "2.51.0";
  } "source ${./tritonserver.sh}";
  bash = link "bash" "/usr" { };
  stdenv.cc = link "cc" "/usr" { };
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
  ruff = link "ruff" (environment "dev") { };
  mypy = link "mypy" (environment "dev") { };
  shellcheck = link "shellcheck" "/usr" { };
}
