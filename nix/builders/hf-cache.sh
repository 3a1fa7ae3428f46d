# shellcheck shell=bash disable=SC2154
mkdir -p "$out/$folder/refs" "$out/$folder/snapshots"
printf %s "$revision" >"$out/$folder/refs/main"
ln -s "$model" "$out/$folder/snapshots/$revision"
