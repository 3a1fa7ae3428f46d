# shellcheck shell=bash
# Sourced: settings for Nix without a cache and without files of its own under /etc.
# The host's tools are let into the sandbox by sandbox-paths, as the package set is made of them; so is what pip of this
# machine is configured with, because pip fetches the wheels there.
for file in "${PIP_CONFIG_FILE-}" "${XDG_CONFIG_HOME:-$HOME/.config}/pip/pip.conf" "$HOME/.pip/pip.conf"; do
  # Builds have another home; there the user's own file is the one that is named. One that others may not read holds secrets.
  if [ -f "$file" ] && [ -n "$(find -L "$file" -perm -004)" ]; then
    export PIP_CONFIG_FILE=${PIP_CONFIG_FILE:-$file}
  fi
done
find_sandbox_paths() {
  pip_words=$(env | grep '^PIP_' || true)
  for file in "${PIP_CONFIG_FILE-}" /etc/pip.conf /etc/xdg/pip/pip.conf; do
    if [ -f "$file" ]; then
      pip_words+=" $file $(cat "$file")"
    fi
  done
  ENGINIX_SANDBOX_PATHS=""
  let_in() { # path
    case " $ENGINIX_SANDBOX_PATHS " in *" $1="*) return ;; esac
    ENGINIX_SANDBOX_PATHS+=" $1=$(readlink -f "$1")"
  }
  for path in /bin /lib /lib64 /usr /etc/ssl /etc/alternatives /etc/ld.so.cache; do
    if [ -e "$path" ]; then let_in "$path"; fi
  done
  # Folders of wheels, indexes on disk, certificates. An index names its files by their place beside it.
  while read -r path; do
    case $path in /etc/ssl/* | /usr/* | //*) continue ;; esac
    if [ -d "$path" ] && [[ $path == /*/*/* ]]; then path=$(dirname "$path"); fi
    if [ -e "$path" ]; then let_in "$path"; fi
  done < <(grep -oE '(file://)?/[A-Za-z0-9_./+-]+' <<<"$pip_words" | sed 's,^file://,,')
}
# Whoever starts many Nix commands looks once (tests/nix/run.sh).
if [ -z "${ENGINIX_SANDBOX_PATHS-}" ]; then
  find_sandbox_paths
fi
NIX_CONFIG="experimental-features = nix-command flakes
substitute = false
sandbox = ${ENGINIX_SANDBOX:-true}
sandbox-paths =$ENGINIX_SANDBOX_PATHS
flake-registry =
warn-dirty = false
build-users-group = nixbld
max-jobs = ${ENGINIX_JOBS:-2}
log-lines = 25
${ENGINIX_NIX_CONFIG:-}"
export NIX_CONFIG
