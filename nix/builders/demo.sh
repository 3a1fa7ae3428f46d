# shellcheck shell=bash disable=SC2154
mkdir -p "$out/bin"
cp "$stagesPath" "$out/stages"
cat >"$out/bin/demo" <<EOF
#!$bash/bin/bash
exec $python3/bin/python3 $flake/demo/demo.py --derivations $out/stages "\$@"
EOF
chmod +x "$out/bin/demo"
