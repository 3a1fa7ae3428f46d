# shellcheck shell=bash disable=SC2154
# Arguments given at start come last, so they win over the ones built in.
mkdir -p "$out/bin" "$out/share"
cat >"$out/bin/$name" <<EOF
#!$bash/bin/bash
exec $enginix/bin/enginix gateway $description $flags "\$@"
EOF
chmod +x "$out/bin/$name"
# Refuses a description that cannot be served now rather than at start; what LiteLLM is told is
# there to be read.
"$enginix/bin/enginix" gateway "$description" --dry-run --json >"$out/share/gateway.json"
