# shellcheck shell=bash disable=SC2154
# The facts of a lock, if they are those of the configuration that it pins.
printf '%s' "$facts" >facts.json
enginix check-facts facts.json --repo "$repo" ${config:+--config "$config"} \
  ${modelopt:+--modelopt "$modelopt"}
cp facts.json "$out"
