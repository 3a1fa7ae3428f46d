# The stand-in runtime and driver as store paths.
{ pkgs }:
let
  runtimes = (builtins.fromJSON (builtins.readFile ../../python/enginix/data/runtime/runtimes.json)).runtimes;
in
rec {
  rootfs =
    id:
    pkgs.runCommand "standin-rootfs-${id}" {
      script = ./rootfs.sh;
      files = builtins.path {
        name = "standin-files";
        path = ./.;
      };
      version = runtimes.${id}.tensorrtLlm;
      site = runtimes.${id}.paths.sitePackages;
    } "bash $script $out $version $site $files";

  driver =
    {
      name ? "NVIDIA H200",
      capability ? "9.0",
      total ? 143771,
      free ? 143000,
      version ? "590.44.01",
      count ? 1,
      misbehave ? "",
    }:
    pkgs.runCommand "standin-driver" {
      script = ./driver.sh;
      values = map toString [
        capability
        total
        free
        version
        count
      ];
      gpu = name;
      inherit misbehave;
    } "bash $script $out \"$gpu\" $values $misbehave";

  # The runtime's root file system with PyTorch and enginix's reference executor: it can be asked. PyTorch is
  # enginix's own environment; a link in the driver keeps it.
  answering =
    e: id: gpu:
    let
      packages = e.enginix.python;
      base = driver gpu;
    in
    e.mkRuntime {
      inherit id;
      rootfs = pkgs.runCommand "standin-rootfs-answering-${id}" {
        base = rootfs id;
        source = builtins.path {
          name = "standin-enginix";
          path = ../../python;
          # What the executor is made of: a change of anything else is no other runtime.
          filter =
            path: _:
            let
              of = pkgs.lib.removePrefix "${toString ../../python}/" (toString path);
              under = d: of == d || pkgs.lib.hasPrefix "${d}/" of;
            in
            baseNameOf path != "__pycache__"
            && (
              builtins.elem of [
                "enginix"
                "enginix/data"
                "enginix/data/__init__.py"
                "enginix/evaluation"
                "enginix/evaluation/__init__.py"
              ]
              || builtins.match "enginix/[a-z_]+[.]py" of != null
              || under "enginix/data/conversion"
              || under "enginix/data/models"
              || under "enginix/evaluation/reference_answers"
              || under "enginix/model"
              || under "enginix/reference"
            );
        };
        inherit packages;
        site = runtimes.${id}.paths.sitePackages;
      } "bash ${./answering.sh}";
      driver = pkgs.runCommand "standin-driver-answering" {
        inherit base packages;
      } "cp -r $base $out; chmod -R u+w $out; ln -s $(readlink -f $packages) $out/lib/packages";
    };

  # mkRuntime over both.
  runtime =
    e: id: gpu:
    e.mkRuntime {
      inherit id;
      rootfs = rootfs id;
      driver = driver gpu;
    };
}
