# shellcheck shell=bash disable=SC2154
mkdir -p "$out/bin" "$out/lib"
# The server imports its package by this name.
cp -r "$server" "$out/lib/hub"
cat >"$out/bin/hub" <<EOF
#!$bash/bin/bash
exec $python3/bin/python3 $out/lib/hub/serve.py --repo $repo=$files "\$@"
EOF
chmod +x "$out/bin/hub"
