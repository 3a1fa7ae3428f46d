# shellcheck shell=bash disable=SC2154
mkdir -p "$out/bin"
cat >"$out/bin/hub" <<EOF
#!$bash/bin/bash
exec $python3/bin/python3 $server/serve.py --repo $repo=$files "\$@"
EOF
chmod +x "$out/bin/hub"
