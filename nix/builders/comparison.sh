# shellcheck shell=bash disable=SC2154
flags=()
if [ -n "$speed" ]; then
  printf '%s' "$speed" >speed.json
  flags=(--speed speed.json)
fi
mkdir "$out"
# shellcheck disable=SC2086 # store paths
enginix compare $engines -o "$out/compare.html" --json "${flags[@]}" >"$out/compare.json"
