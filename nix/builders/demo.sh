# shellcheck shell=bash disable=SC2154
mkdir -p "$out/bin"
cat >"$out/bin/demo" <<EOF
#!$bash/bin/bash
exec $python3/bin/python3 $script --flake $flake --hub $hub/serve.py --files $files "\$@"
EOF
chmod +x "$out/bin/demo"
