# shellcheck shell=bash disable=SC2154
# shellcheck source=nix/builders/launcher.sh
source "$launcher"
# As a systemd service, state and key are where systemd puts them.
# shellcheck disable=SC2016 # of the launcher, which expands them
write_launcher "$name" \
  'state=${STATE_DIRECTORY:-${XDG_CACHE_HOME:-$HOME/.cache}/enginix/'"$name}" \
  'mkdir -p "$state"' \
  'key=()' \
  'if [ -n "${CREDENTIALS_DIRECTORY-}" ] && [ -e "$CREDENTIALS_DIRECTORY/api-key" ]; then' \
  '  key=(--api-key-file "$CREDENTIALS_DIRECTORY/api-key")' \
  'fi' \
  "$enginix/bin/enginix edgellm-serve $engine --model $model --python $python \
  ${driver:+--driver $driver} --state \"\$state\" $flags \"\${key[@]}\""
