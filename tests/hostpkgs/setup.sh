#!/usr/bin/env bash
# Installs what a machine lacks to run enginix over the stand-in package set: Nix, Python's venv, build
# users, and the Python environments named as arguments (environments.sh lists them). Safe to run again.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

fail() {
  printf 'error: %s\n  fix: %s\n' "$1" "$2" >&2
  exit 5
}

# The locks have wheels for Python 3.11, and the builds take the distribution's own interpreter: Debian 12 has that
# one. Other releases have another Python and no package of 3.11.
python=$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true)
# shellcheck source=/dev/null
system=$(. /etc/os-release 2>/dev/null; echo "${PRETTY_NAME-}")
if [ "$python" != 3.11 ]; then
  fail "this is ${system:-a system without a name}, whose /usr/bin/python3 is ${python:-missing}; without nixpkgs, enginix needs 3.11, which Debian 12 has" \
    "on Debian 12: apt-get install python3. On any system with Nix and nixpkgs: nix run .#demo. With Python 3.10 to 3.12 on Linux: the README's section Install, pip"
fi
case $HOSTTYPE in
x86_64) ;;
*) fail "this machine is $HOSTTYPE; the wheels of PyTorch and Triton are locked for x86_64" \
  "run it on x86_64; on aarch64, Nix offers models, checkpoints and enginix-core (docs/reference/environments.md)" ;;
esac

# Two may run at once (.ci/run): one of them installs.
exec 9<"${BASH_SOURCE[0]}"
! command -v flock >/dev/null || flock 9

missing=()
need() { # command, Debian package that has it
  command -v "$1" >/dev/null || missing+=("$2")
}
# Read whole: a grep that ends early would end ldconfig by SIGPIPE.
libraries=$(ldconfig -p)
library() { # name as ldconfig has it, Debian package
  [[ $libraries == *"$1"* ]] || missing+=("$2")
}
need nix nix-bin
need cc gcc
[ -e /usr/include/stdint.h ] || missing+=(libc6-dev)
/usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
# Triton's Python stub is linked against them.
library libpython3.11.so libpython3.11
library libexpat.so libexpat1
if [[ " $* " == *" dev "* || " $* " == *" lint "* ]]; then
  need shellcheck shellcheck
fi
if [[ " $* " == *" dev "* ]]; then
  need bwrap bubblewrap
  need pgrep procps
  need busybox busybox-static
  need git-lfs git-lfs
  need systemd-analyze systemd
fi

if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get >/dev/null ||
    fail "this machine has no ${missing[*]}, and no apt-get to install it with" \
      "install Nix (https://nixos.org/download) and what has these names on Debian 12, then run this again; where nixpkgs can be reached, 'nix run .#demo' needs none of it"
  [ "$(id -u)" = 0 ] ||
    fail "this machine has no ${missing[*]}, and installing it needs root" \
      "run as root, or: sudo apt-get install ${missing[*]}"
  echo "setup: installing ${missing[*]}" >&2
  export DEBIAN_FRONTEND=noninteractive
  # Another apt may run: wait for it.
  apt-get -o DPkg::Lock::Timeout=600 update -qq
  apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# Debian's nix-bin brings no build users; a single-user store run by root builds as them all the same.
if [ "$(id -u)" = 0 ] && ! getent group nixbld >/dev/null; then
  groupadd --system nixbld
fi
if [ "$(id -u)" = 0 ]; then
  for i in 1 2 3 4 5 6 7 8; do
    getent passwd "nixbld$i" >/dev/null ||
      useradd --system --no-create-home --home-dir /var/empty --shell /usr/sbin/nologin \
        --gid nixbld --groups nixbld "nixbld$i"
  done
fi

exec 9<&-

if [ $# -gt 0 ]; then
  "$here/environments.sh" "$@" >/dev/null
fi
