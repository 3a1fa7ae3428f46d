# shellcheck shell=bash disable=SC2154
# shellcheck source=nix/builders/launcher.sh
source "$launcher"
write_launcher "$name" ${bubblewrap:+"$(bubblewrap_line)"} \
  "$enginix/bin/enginix serve $repo $installation $flags"
# Refuses a repository that this runtime cannot serve now rather than at start.
eval "words=($installation $flags)"
if [ -n "$needsSecret" ]; then
  for i in "${!words[@]}"; do
    case ${words[i]-} in --admin-key-file) unset "words[i]" "words[i+1]" ;; esac
  done
fi
"$enginix/bin/enginix" serve "$repo" "${words[@]}" --dry-run >/dev/null
