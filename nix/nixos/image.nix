# The root of a server inside a runtime's image: a mount point for each of the image's directories,
# and the image's own links (bin, lib, …). The image itself is bound over it, so nothing is copied.
{ pkgs }:
runtime:
let
  directories = [
    "usr"
    "opt"
    "etc"
    "app"
    "root"
    "home"
    "srv"
    "bin"
    "sbin"
    "lib"
    "lib32"
    "lib64"
    "libx32"
  ];
in
{
  inherit (runtime) rootfs;
  inherit directories;
  root = pkgs.runCommand "${runtime.id}-root" { inherit (runtime) rootfs; } ''
    mkdir -p $out/{nix/store,dev,proc,sys,run,tmp,var}
    cd $rootfs
    for entry in ${toString directories}; do
      if [ -L "$entry" ]; then
        cp -P "$entry" "$out/"
      elif [ -d "$entry" ]; then
        mkdir "$out/$entry"
      fi
    done
  '';
}
