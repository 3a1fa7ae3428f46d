# shellcheck shell=bash disable=SC2154
# shellcheck source=nix/builders/launcher.sh
source "$launcher"
install_package
# Only in packages that convert: what calibrates, exports or asks has no checkpoint/.
if [ -e "$out/lib/enginix/checkpoint/casts.sh" ]; then
  bash "$out/lib/enginix/checkpoint/casts.sh" "$out/lib/enginix/checkpoint/casts.so"
fi
# shellcheck disable=SC2016 # of the launcher, which expands it
write_package_launcher enginix.cli:run_program '${PYTHONPATH:+:$PYTHONPATH}'
# Only in the whole package: completion reads the parsers of every command.
if [ -e "$out/lib/enginix/cli/shell" ]; then
  mkdir -p "$out/share/bash-completion/completions" "$out/share/zsh/site-functions" "$out/share/fish/vendor_completions.d"
  "$out/bin/enginix" completion bash >"$out/share/bash-completion/completions/enginix"
  "$out/bin/enginix" completion zsh >"$out/share/zsh/site-functions/_enginix"
  "$out/bin/enginix" completion fish >"$out/share/fish/vendor_completions.d/enginix.fish"
fi
