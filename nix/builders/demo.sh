# shellcheck shell=bash disable=SC2154
# shellcheck source=nix/builders/launcher.sh
source "$launcher"
mkdir -p "$out"
cp "$stagesPath" "$out/stages"
write_launcher demo "$python3/bin/python3 $flake/demo/demo.py --derivations $out/stages"
