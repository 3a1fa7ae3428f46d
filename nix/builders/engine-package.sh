# shellcheck shell=bash disable=SC2154
# shellcheck source=nix/builders/launcher.sh
source "$launcher"
install_package
# A store path is read only: without bytecode every start would compile the modules again.
"$python/bin/python3" -m compileall -q --invalidation-mode unchecked-hash "$out/lib"
write_package_launcher "$main" "" "$(bubblewrap_line)"
