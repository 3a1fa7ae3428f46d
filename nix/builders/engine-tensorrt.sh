# shellcheck shell=bash disable=SC2154
# The warnings of the evaluation, for readers of the build log.
[ -z "${warnings-}" ] || printf 'warning: %s\n' "${warnings//$'\n'/$'\nwarning: '}" >&2
# The driver writes straight into $out: an engine is as large as its weights, and is not copied once
# more.
enginix build --request "$requestPath" --checkpoint "${checkpoint-}" --model "$model" \
  --rootfs "$rootfs" --driver "$driver" --out "$out" --timing "$timing"
