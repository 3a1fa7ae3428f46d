# shellcheck shell=bash disable=SC2154
# shellcheck source=nix/builders/launcher.sh
source "$launcher"
write_launcher "$program" "$command/bin/enginix runner $arguments \
  ${requestFile:+--request $requestFile} ${rootfs:+--rootfs $rootfs} \
  ${driver:+--driver $driver} ${pinFile:+--pin $pinFile}"
