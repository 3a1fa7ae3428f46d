# shellcheck shell=bash disable=SC2154
# Arguments given at start come last, so they win over the ones built in.
mkdir -p "$out/bin"
room=
[ -z "$bubblewrap" ] || room="ENGINIX_BWRAP=\${ENGINIX_BWRAP:-$bubblewrap/bin/bwrap} "
cat >"$out/bin/$name" <<EOF
#!$bash/bin/bash
${room}exec $enginix/bin/enginix serve $repo $installation $flags "\$@"
EOF
chmod +x "$out/bin/$name"
# Refuses a repository that this runtime cannot serve now rather than at start.
eval "words=($installation $flags)"
if [ -n "$needsSecret" ]; then
  for i in "${!words[@]}"; do
    case ${words[i]-} in --admin-key-file) unset "words[i]" "words[i+1]" ;; esac
  done
fi
"$enginix/bin/enginix" serve "$repo" "${words[@]}" --dry-run >/dev/null
