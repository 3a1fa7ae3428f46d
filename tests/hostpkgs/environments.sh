#!/usr/bin/env bash
# Builds the Python environments that Nix builds, for tests and tools outside of Nix: the same derivations, by the same
# function, kept from garbage collection.
#
#   environments.sh NAME ...              builds what is missing, prints each store path
#   environments.sh --existing NAME ...   builds nothing; status 3 where one is missing
#
# NAME: core, runtime, modelopt, edgellm, rtx, gateway; dev (what tests need); lint; tritonserver (the server).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
roots=${XDG_STATE_HOME:-$HOME/.local/state}/enginix/environments

existing=""
if [ "${1-}" = --existing ]; then
  existing=1
  shift
fi

# A root is named by all that an environment is made of, so that an unchanged one is found without Nix.
digest=$(cd "$here/../.." && cat nix/default.nix nix/python/*.nix nix/python/*.json nix/python/locks/*.json nix/tritonserver-cpu.nix \
  nix/builders/python* nix/builders/tritonserver-cpu.sh tests/hostpkgs/{default,lib,environments}.nix tests/hostpkgs/*.sh | sha256sum)

for name in "$@"; do
  root=$roots/$name-${digest:0:16}
  if [ ! -e "$root/bin" ]; then
    expression="import $here/environments.nix \"$name\""
    if [ -n "$existing" ] && [ ! -e "$("$here/nix" eval --impure --raw --expr "($expression).outPath" 2>/dev/null)" ]; then
      echo "environments: no environment $name; make it with tests/hostpkgs/environments.sh $name" >&2
      exit 3
    fi
    mkdir -p "$roots"
    "$here/nix" build --impure --out-link "$root" --expr "$expression" >&2
  fi
  readlink -f "$root"
done
