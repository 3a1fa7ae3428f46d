#!/usr/bin/env bash
# Runs nix_checks.sh with the Nix of Debian 13, in a system of its own that is removed afterwards (450 MB).
#
#   nix_in_debian.sh DIR       DIR: a copy of the project, without .git
#
# Needs root, debootstrap and Debian's mirror, which DEBIAN_MIRROR names; without it, this machine's own is taken.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ "$(id -u)" != 0 ] || ! command -v debootstrap >/dev/null; then
  echo "nix_in_debian: needs root and debootstrap (apt-get install debootstrap)" >&2
  exit 77
fi
if [ -z "${NIX_IN_DEBIAN-}" ]; then
  root=$(mktemp -d "${TMPDIR:-/tmp}/enginix-nix.XXXXXX")
  status=0
  # Mounts go with the namespace, and what was started in it ends with it.
  NIX_IN_DEBIAN=$root unshare --mount --pid --fork --kill-child --propagation private bash "${BASH_SOURCE[0]}" "$1" || status=$?
  rm -rf --one-file-system "$root"
  exit "$status"
fi
root=$NIX_IN_DEBIAN
mirror=${DEBIAN_MIRROR:-$(sed -n 's/^URIs: *//p; s/^deb \(\[.*\] \)\?\([a-z]*:[^ ]*\) .*/\2/p' \
  /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -n 1 || true)}
debootstrap --variant=minbase --include=nix-bin,libdbi-perl,git,ca-certificates trixie "$root" ${mirror:+"$mirror"} \
  >"$root.log" 2>&1 || { tail -n 5 "$root.log" >&2; exit 5; }
rm -f "$root.log"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
cp -r "$1" "$root/src"
cp "$here/nix_checks.sh" "$root/nix_checks.sh"
chroot "$root" env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 bash /nix_checks.sh /src
