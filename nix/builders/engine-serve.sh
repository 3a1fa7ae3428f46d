# shellcheck shell=bash disable=SC2154
mkdir -p "$out/bin"
cat >"$out/bin/$program" <<EOF
#!$bash/bin/bash
exec $command/bin/enginix runner $arguments ${requestFile:+--request $requestFile} ${rootfs:+--rootfs $rootfs} ${driver:+--driver $driver} ${pinFile:+--pin $pinFile} "\$@"
EOF
chmod +x "$out/bin/$program"
