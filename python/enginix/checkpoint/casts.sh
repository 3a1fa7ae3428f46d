#!/usr/bin/env bash
# Compiles casts.c:  casts.sh OUTPUT [compiler flags]
# No flag may change a value: -fno-trapping-math only lets the compiler compute both sides of a choice.
exec "${CC:-cc}" -std=c11 -O3 -fno-trapping-math -ffp-contract=off -Wall -Wextra -fPIC -shared \
  "${@:2}" -o "$1" "$(dirname "${BASH_SOURCE[0]}")/casts.c"
