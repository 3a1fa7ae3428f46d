# shellcheck shell=bash disable=SC1090,SC2154
source "$environment"
enginix ask --model "$model" --questions "$questions" --out "$out"
