#!/usr/bin/env bash
# Builds the Python environments that tests/hostpkgs hands to Nix builds, where build users can read them.
#
#   environments.sh core|runtime|dev|edgellm|modelopt|gateway ...    makes what is missing, prints each environment's path
#
# The path carries the hash of the lock file, so an environment is never changed in place, and a
# derivation that names it changes with it (default.nix computes the same path).
set -euo pipefail

root=/opt/enginix
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/requirements

path_of() {
  local digest
  digest=$(sha256sum "$here/$1.txt")
  printf '%s/%s-%s\n' "$root" "$1" "${digest:0:12}"
}

pip_install() { # environment, pip arguments
  local env=$1
  shift
  "$env/bin/python" -m pip install -qq --disable-pip-version-check --no-deps --only-binary :all: "$@"
}

# The lock pins PyTorch's CPU build. Where pip finds only PyPI's CUDA build, that one works too, at several GB.
install_torch() {
  local env=$1 lock=$2 pinned
  pinned=$(grep -m1 '^torch==' "$lock" | cut -d' ' -f1)
  sed -n '/^torch==/,/^[a-z#]/p' "$lock" | sed '$d' >"$env/torch.txt"
  if ! pip_install "$env" --require-hashes -r "$env/torch.txt" 2>/dev/null; then
    echo "environments: pip finds no ${pinned}; taking PyPI's CUDA build (several GB)." \
      "To spare that, put PyTorch's index of CPU wheels into PIP_EXTRA_INDEX_URL." >&2
    "$env/bin/python" -m pip install -qq --disable-pip-version-check "${pinned%+cpu}"
  fi
}

make_environment() {
  local name=$1 env lock parent
  env=$(path_of "$name")
  lock=$here/$name.txt
  if [ -e "$env/.complete" ]; then
    return
  fi
  rm -rf "$env"
  mkdir -p "$root"
  # Debian's interpreter: build users can read it, and Triton's Python stub finds its library.
  /usr/bin/python3 -m venv "$env"
  if [ "$name" = dev ]; then
    # dev stands on runtime's files instead of installing them twice.
    make_environment runtime
    parent=$(path_of runtime)
    echo "$parent/lib/$(basename "$parent"/lib/python3.*)/site-packages" \
      >"$(echo "$env"/lib/python3.*/site-packages)/runtime.pth"
  fi
  sed '/^torch==/,/^[a-z#]/{/^torch==/d;/^    /d}' "$lock" >"$env/lock.txt"
  pip_install "$env" --require-hashes -r "$env/lock.txt"
  case $name in
  runtime)
    install_torch "$env" "$lock"
    pip_install "$env" --require-hashes -r "$here/triton.txt"
    ;;
  edgellm | modelopt) install_torch "$env" "$lock" ;;
  esac
  "$env/bin/python" -m compileall -q "$env"/lib >/dev/null 2>&1 || true
  chmod -R a+rX "$env"
  touch "$env/.complete"
}

if ! /usr/bin/python3 -c 'import ensurepip' 2>/dev/null; then
  echo "environments: /usr/bin/python3 cannot make environments; install Debian's python3-venv" >&2
  exit 5
fi
for name in "$@"; do
  make_environment "$name"
  path_of "$name"
done
