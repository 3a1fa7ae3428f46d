# shellcheck shell=bash disable=SC2154
# shellcheck source=nix/builders/launcher.sh
source "$launcher"
write_launcher "$name" "$enginix/bin/enginix gateway $description $flags"
# Refuses a description that cannot be served now rather than at start; the configuration that
# LiteLLM gets is there to be read.
mkdir -p "$out/share"
"$enginix/bin/enginix" gateway "$description" --dry-run --json >"$out/share/gateway.json"
