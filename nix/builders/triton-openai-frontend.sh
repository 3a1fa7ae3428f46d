# shellcheck shell=bash disable=SC2154
"$enginix/bin/enginix" openai-frontend --rootfs "$rootfs" --model-runtime "$id" ${source:+--source "$source"} -o "$out"
