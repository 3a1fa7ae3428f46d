# shellcheck shell=bash disable=SC2154
# The whole of this stand-in's stdenv.
set -euo pipefail
eval "$buildCommand"
