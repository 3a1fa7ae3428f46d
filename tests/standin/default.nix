# The stand-in runtime and driver as store paths.
{ pkgs }:
let
  runtimes = (builtins.fromJSON (builtins.readFile ../../python/enginix/data/runtimes.json)).runtimes;
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

  # mkRuntime over both.
  runtime =
    e: id: gpu:
    e.mkRuntime {
      inherit id;
      rootfs = rootfs id;
      driver = driver gpu;
    };
}
