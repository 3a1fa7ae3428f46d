# shellcheck shell=bash disable=SC2154
# shellcheck source=nix/builders/launcher.sh
source "$launcher"
write_launcher "$id-run" "$command/bin/enginix runtime run $word --rootfs $rootfs \
  ${driver:+--driver $driver} ${pinFile:+--pin $pinFile} --"
