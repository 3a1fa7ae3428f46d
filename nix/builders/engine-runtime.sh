# shellcheck shell=bash disable=SC2154
mkdir -p "$out/bin"
cat >"$out/bin/$id-run" <<EOF
#!$bash/bin/bash
exec $command/bin/enginix runtime run $id --rootfs $rootfs ${driver:+--driver $driver} ${pinFile:+--pin $pinFile} -- "\$@"
EOF
chmod +x "$out/bin/$id-run"
