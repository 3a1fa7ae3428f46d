# shellcheck shell=bash disable=SC1090,SC2154
# One file of a model, straight into $out, its hash checked before Nix checks it again.
source "$hubSetup"
# shellcheck disable=SC2086 # empty or one word
enginix fetch-file $flags "$repo" "$revision" "$path" --sha256 "$sha256" --size "$size" -o "$out"
