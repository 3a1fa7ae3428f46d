# shellcheck shell=bash disable=SC2154
# shellcheck source=nix/builders/launcher.sh
source "$launcher"
mkdir -p "$out/share"
cp "$modelsPath" "$out/share/models.json"
# A crane of the caller's comes first: it may have logged in to a registry.
write_launcher pin \
  "export PATH=\$PATH${crane:+:$crane/bin}" \
  "export ENGINIX_CATALOGUE=$out/share/models.json" \
  "$enginix/bin/enginix pin"
