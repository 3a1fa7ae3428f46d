# shellcheck shell=bash disable=SC2154
mkdir -p "$out/bin"
cat >"$out/bin/demo" <<EOF
#!$bash/bin/bash
exec $python3/bin/python3 $flake/demo/demo.py "\$@"
EOF
chmod +x "$out/bin/demo"
