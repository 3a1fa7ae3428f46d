# shellcheck shell=bash disable=SC1090,SC2154
# A whole repository, as a clone without .git has it; each file checked against the Hub's hash.
source "$hubSetup"
enginix fetch-tree "$repo" "$revision" -o "$out"
