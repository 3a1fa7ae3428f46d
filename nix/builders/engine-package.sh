# shellcheck shell=bash disable=SC2154
# The launcher is a file of its own: with `-m`, Python would put the caller's directory first on the
# module path.
mkdir -p "$out/bin" "$out/lib" "$out/libexec"
cp -r "$source" "$out/lib/enginix"
chmod -R u+w "$out/lib"
# A store path is read only: without bytecode every start would compile the modules again.
"$python/bin/python3" -m compileall -q --invalidation-mode unchecked-hash "$out/lib"
cat >"$out/libexec/launch.py" <<EOF
from $main import main

raise SystemExit(main())
EOF
cat >"$out/bin/enginix" <<EOF
#!$bash/bin/bash
export PYTHONPATH=$out/lib PYTHONDONTWRITEBYTECODE=1
export ENGINIX_BWRAP=\${ENGINIX_BWRAP:-$bubblewrap/bin/bwrap}
exec $python/bin/python3 $out/libexec/launch.py "\$@"
EOF
chmod +x "$out/bin/enginix"
