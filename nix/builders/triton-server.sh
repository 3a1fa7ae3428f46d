# shellcheck shell=bash disable=SC2154
# Arguments given at start come last, so they win over the ones built in.
mkdir -p "$out/bin"
cat >"$out/bin/$name" <<EOF
#!$bash/bin/bash
exec $enginix/bin/enginix serve $repo --tritonserver $tritonserver $flags "\$@"
EOF
chmod +x "$out/bin/$name"
# Refuses a repository that this runtime cannot serve now rather than at start.
"$enginix/bin/enginix" serve "$repo" --tritonserver "$tritonserver" --dry-run >/dev/null
