# shellcheck shell=bash disable=SC2154
# shellcheck source=nix/builders/launcher.sh
source "$launcher"
install_package
# Only in packages that convert: what calibrates, exports or asks has no checkpoint/.
if [ -e "$out/lib/enginix/checkpoint/casts.sh" ]; then
  bash "$out/lib/enginix/checkpoint/casts.sh" "$out/lib/enginix/checkpoint/casts.so"
fi
# shellcheck disable=SC2016 # of the launcher, which expands it
write_package_launcher enginix.cli '${PYTHONPATH:+:$PYTHONPATH}'
