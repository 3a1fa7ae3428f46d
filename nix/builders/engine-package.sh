# shellcheck shell=bash disable=SC2154
# shellcheck source=nix/builders/launcher.sh
source "$launcher"
install_package
write_package_launcher "$main" "" "$(bubblewrap_line)"
