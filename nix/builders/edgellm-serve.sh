# shellcheck shell=bash disable=SC2154
# Arguments given at start come last, so they win over the ones built in. As a systemd service,
# state and key are where systemd puts them.
mkdir -p "$out/bin"
cat >"$out/bin/$name" <<EOS
#!$bash/bin/bash
state=\${STATE_DIRECTORY:-\${XDG_CACHE_HOME:-\$HOME/.cache}/enginix/$name}
mkdir -p "\$state"
key=()
if [ -n "\${CREDENTIALS_DIRECTORY-}" ] && [ -e "\$CREDENTIALS_DIRECTORY/api-key" ]; then
  key=(--api-key-file "\$CREDENTIALS_DIRECTORY/api-key")
fi
exec $enginix/bin/enginix edgellm-serve $engine --model $model --python $python ${driver:+--driver $driver} --state "\$state" $flags "\${key[@]}" "\$@"
EOS
chmod +x "$out/bin/$name"
