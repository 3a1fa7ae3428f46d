# shellcheck shell=bash disable=SC2154
# Makes a stand-in root file system that can be asked: its Python finds PyTorch and enginix. Sourced variables of the
# build: base, source, packages, site, out.
set -euo pipefail
cp -r "$base" "$out"
chmod -R u+w "$out"
environment=$(readlink -f "$packages")
# The environment is links into the store, which is there inside.
find -L "$environment"/lib/python3*/site-packages \( -path '*/torch/lib/*.so*' -o -path '*/numpy*.so' -o -path '*/tokenizers/*.so' \) -exec ldd {} + 2>/dev/null |
  grep -o '=> /[^ ]*' | cut -c4- | sort -u | while read -r library; do
  case $library in /nix/store/*) continue ;; esac
  [ -e "$out$library" ] || { mkdir -p "$out$(dirname "$library")" && cp -L "$library" "$out$library"; }
done
interpreter=$(dirname "$(find "$out/opt" "$out/usr/local" -path '*/bin/python3' | head -n1)")
cat >"$interpreter/python3" <<EOF
#!/bin/sh
OMP_NUM_THREADS=1 PYTHONPATH=$site:$source:$(echo "$environment"/lib/python3*/site-packages) exec /usr/bin/python3 "\$@"
EOF
