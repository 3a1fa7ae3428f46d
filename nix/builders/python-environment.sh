# shellcheck shell=bash disable=SC2154,SC2086
# As a virtual environment has it: Python finds pyvenv.cfg above the link by which it was started.
mkdir -p "$out/bin"
for name in python python3 python3.11; do
  ln -s "$python/bin/python3" "$out/bin/$name"
done
cat >"$out/pyvenv.cfg" <<EOF
home = $python/bin
include-system-site-packages = false
EOF
python3 -I "$linker" "$out" $wheels
