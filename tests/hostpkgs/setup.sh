#!/usr/bin/env bash
# Installs what a machine lacks to run enginix over the stand-in package set: Nix, Python's venv, build
# users, and the Python environments named as arguments (core, runtime, dev). Safe to run again.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

fail() {
  printf 'error: %s\n  fix: %s\n' "$1" "$2" >&2
  exit 5
}

missing=()
need() { # command, Debian package that has it
  command -v "$1" >/dev/null || missing+=("$2")
}
library() { # name as ldconfig has it, Debian package
  # Not through a pipe: a grep that ends early ends ldconfig, too, and with it this test.
  grep -qF "$1" <<<"$(ldconfig -p)" || missing+=("$2")
}
need nix nix-bin
need cc gcc
[ -e /usr/include/stdint.h ] || missing+=(libc6-dev)
/usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
# Triton's Python stub is linked against them.
library libpython3.11.so libpython3.11
library libexpat.so libexpat1
if [[ " $* " == *" dev "* ]]; then
  need shellcheck shellcheck
  need bwrap bubblewrap
  need pgrep procps
  need busybox busybox-static
  need git-lfs git-lfs
  need systemd-analyze systemd
fi

if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get >/dev/null ||
    fail "this machine has no ${missing[*]}, and no apt-get to install it with" \
      "install Nix (https://nixos.org/download) and Python 3.11 with venv, then run this again; with nixpkgs reachable, 'nix run .#demo' needs neither"
  [ "$(id -u)" = 0 ] ||
    fail "this machine has no ${missing[*]}, and installing it needs root" \
      "run as root, or: sudo apt-get install ${missing[*]}"
  echo "setup: installing ${missing[*]}" >&2
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
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

"$here/environments.sh" "$@" >/dev/null
