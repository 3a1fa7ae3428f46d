# shellcheck shell=bash disable=SC1090,SC2154
# One file of a model, straight into $out, its hash checked before Nix checks it again.
source "$hubSetup"
enginix fetch-file "$repo" "$revision" "$path" --sha256 "$sha256" --size "$size" -o "$out"
