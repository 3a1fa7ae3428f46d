# shellcheck shell=bash disable=SC2154
enginix build --kind llmapi --model "$model" --link-checkpoint --request "$requestPath" -o "$out"
