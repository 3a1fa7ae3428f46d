# shellcheck shell=bash disable=SC2154
# Links each file to its own store path; $linksPath holds a path and a store path on alternating
# lines.
mkdir "$out"
while IFS= read -r path && IFS= read -r file; do
  mkdir -p "$out/$(dirname "$path")"
  ln -s "$file" "$out/$path"
done <"$linksPath"
cp "$manifestPath" "$out/enginix.json"
chmod 644 "$out/enginix.json"
