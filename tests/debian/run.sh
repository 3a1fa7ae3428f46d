#!/usr/bin/env bash
# The README's commands on a Debian 12 of their own, with only what a user's has: debootstrap's minbase and git, make,
# python3. Prepared environments, wheels and pip's settings of this machine are out of sight.
#
#   tests/debian/run.sh demo       make demo, twice: cold, and with everything in the store
#   tests/debian/run.sh test       make test
#   tests/debian/run.sh pip        the README's section "pip", from a clone to an answer
#   tests/debian/run.sh shell      a shell there
#
# Needs root, debootstrap, 15 GB of disk, and a network that reaches Debian's mirror and Python's package index. What a
# network does not give is simulated by variables, and the script says which were used:
#
#   DEBIAN_MIRROR=URL        another mirror of Debian
#   DEBIAN_APT=FILE          apt's sources of such a mirror, in place of one line
#   DEBIAN_CERTIFICATES=FILES certificates of a proxy, separated by spaces
#   DEBIAN_PIP_CONF=FILE     pip's settings there (an index of the network's own)
#   DEBIAN_WHEELS=DIR        stands for PyTorch's index of CPU wheels, where that cannot be reached: only torch's wheel
#                            of the lock is shown
#   DEBIAN_ROOT=DIR          the system, kept between runs (default: a temporary directory, removed)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
what=${1:-demo}

fail() {
  printf 'error: %s\n  fix: %s\n' "$1" "$2" >&2
  exit 5
}
[ "$(id -u)" = 0 ] || fail "debootstrap and chroot need root" "run it as root"
command -v debootstrap >/dev/null || fail "debootstrap is not installed" "apt-get install debootstrap"

# Namespaces of its own: mounts go with them, and what Nix starts there ends with them.
if [ -z "${DEBIAN_INSIDE-}" ]; then
  root=${DEBIAN_ROOT:-$(mktemp -d "${TMPDIR:-/tmp}/enginix-debian.XXXXXX")}
  kept=${DEBIAN_ROOT-}
  status=0
  DEBIAN_INSIDE=1 DEBIAN_ROOT=$root DEBIAN_KEPT=$kept \
    unshare --mount --pid --fork --kill-child --propagation private bash "${BASH_SOURCE[0]}" "$@" || status=$?
  [ -n "${DEBIAN_ROOT-}" ] || rm -rf --one-file-system "$root"
  exit "$status"
fi
root=$DEBIAN_ROOT

begun=$SECONDS
if [ ! -e "$root/etc/debian_version" ]; then
  debootstrap --variant=minbase --include=ca-certificates,git,make,python3 bookworm "$root" \
    ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$root.log" 2>&1 ||
    { tail -n 5 "$root.log" >&2; fail "debootstrap failed" "see $root.log; DEBIAN_MIRROR=URL names another mirror"; }
  rm -f "$root.log"
fi
echo "debian: minbase after $((SECONDS - begun)) s"

# Nix ends all processes of a build user before and after a build. Users of that system get other numbers than those of
# this machine's Nix, so that neither ends the other's builds.
sed -i 's/^#\?SYS_UID_MAX.*/SYS_UID_MAX 599/; s/^#\?SYS_UID_MIN.*/SYS_UID_MIN 500/' "$root/etc/login.defs"
simulated=("numbers of the build users")
if [ -n "${DEBIAN_APT-}" ]; then
  install -m 644 "$DEBIAN_APT" "$root/etc/apt/sources.list"
  simulated+=("Debian's mirror, by ${DEBIAN_MIRROR-} and $DEBIAN_APT")
fi
if [ -n "${DEBIAN_CERTIFICATES-}" ]; then
  # shellcheck disable=SC2086 # several files
  install -m 644 -t "$root/usr/local/share/ca-certificates" $DEBIAN_CERTIFICATES
  chroot "$root" update-ca-certificates >/dev/null 2>&1
  simulated+=("certificates of the network")
fi
rm -f "$root/etc/pip.conf"
if [ -n "${DEBIAN_PIP_CONF-}" ]; then
  install -m 644 "$DEBIAN_PIP_CONF" "$root/etc/pip.conf"
  simulated+=("Python's package index, by pip's settings")
fi
if [ -n "${DEBIAN_WHEELS-}" ]; then
  file=$(python3 -c 'import json, sys
print(json.load(open(sys.argv[1]))["wheels"]["torch"]["files"]["x86_64-linux"]["file"])' "$here/nix/python/locks/runtime.json")
  [ -e "$DEBIAN_WHEELS/$file" ] || fail "$DEBIAN_WHEELS has no $file" "put the locked wheel of torch there"
  install -D -m 644 "$DEBIAN_WHEELS/$file" "$root/srv/torch/$file"
  # Sections that the network's settings, under [global], do not have.
  printf '[%s]\nfind-links = /srv/torch\n' install download >>"$root/etc/pip.conf"
  simulated+=("PyTorch's index of CPU wheels, by a directory with $file")
fi
install -m 644 /etc/resolv.conf "$root/etc/resolv.conf"
install -m 644 /etc/hosts "$root/etc/hosts"

# A root has to be a mount.
mount --bind "$root" "$root"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"

rm -rf "$root/root/enginix"
git clone -q "file://$here" "$root/root/enginix"
git -C "$root/root/enginix" checkout -q --detach "$(git -C "$here" rev-parse HEAD)"

# Nothing of this machine's environment but proxies. The system is the root of its mounts, not only of a chroot: Nix
# starts git in the namespace that it was started in, at that namespace's root.
inside() { # script
  # shellcheck disable=SC2016
  env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    ${https_proxy:+https_proxy="$https_proxy"} ${http_proxy:+http_proxy="$http_proxy"} ${no_proxy:+no_proxy="$no_proxy"} \
    unshare --mount --pid --fork --kill-child --propagation private bash -euc '
      cd "$1"
      mount -t proc proc proc
      pivot_root . mnt
      exec chroot . /bin/bash -euo pipefail -c "umount -l /mnt; cd /root/enginix; $2"' - "$root" "$1"
}
timed() { # label, script
  local from=$SECONDS
  inside "$2"
  echo "debian: $1 took $((SECONDS - from)) s"
}

inside '! [ -e /opt/enginix ] && ! command -v nix pip cc >/dev/null' ||
  [ -n "$DEBIAN_KEPT" ] || fail "the system is not bare" "remove it and run again"
case $what in
demo)
  timed "make demo, cold," 'make demo'
  timed "make demo, warm," 'make demo'
  ;;
test) timed "make test" 'make test' ;;
pip)
  # The README's own block, so that the page is what is tried.
  # shellcheck disable=SC2016
  script=$(sed -n '/^### pip/,/^### /{/^```sh$/,/^```$/p}' "$here/README.md" | grep -v '^```')
  [ -n "$script" ] || fail "README.md has no block of shell under '### pip'" "write it, or correct this script"
  inside 'apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv libpython3.11 >/dev/null'
  timed "the README's pip commands" "$script"
  ;;
shell) inside 'exec bash -i' ;;
*) fail "unknown word $what" "demo, test, pip or shell" ;;
esac
printf 'debian: simulated: %s\n' "${simulated[@]}"
