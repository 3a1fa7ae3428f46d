# shellcheck shell=bash
# Sourced: settings for Nix without a cache and without files of its own under /etc.
# The host's tools are let into the sandbox by sandbox-paths, as the package set is made of them.
sandbox_paths=""
for path in /bin /lib /lib64 /usr /opt/enginix /etc/ssl /etc/alternatives /etc/ld.so.cache; do
  if [ -e "$path" ]; then
    sandbox_paths+=" $path=$(readlink -f "$path")"
  fi
done
NIX_CONFIG="experimental-features = nix-command flakes
substitute = false
sandbox = ${ENGINIX_SANDBOX:-true}
sandbox-paths =$sandbox_paths
flake-registry =
warn-dirty = false
build-users-group = nixbld
max-jobs = ${ENGINIX_JOBS:-2}
log-lines = 25
${ENGINIX_NIX_CONFIG:-}"
export NIX_CONFIG
