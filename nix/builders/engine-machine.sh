# shellcheck shell=bash disable=SC2154
enginix machine --request "$requestPath" --rootfs "$rootfs" --driver "$driver"
echo "looked at before the weights are fetched; the build looks again" >"$out"
