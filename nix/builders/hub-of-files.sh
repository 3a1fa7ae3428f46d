# shellcheck shell=bash disable=SC2154
# shellcheck source=nix/builders/launcher.sh
source "$launcher"
mkdir -p "$out/lib"
# The server imports its package by this name.
cp -r "$server" "$out/lib/hub"
write_launcher hub "$python3/bin/python3 $out/lib/hub/serve.py --repo $repo=$files"
