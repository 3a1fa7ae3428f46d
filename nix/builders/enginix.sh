# shellcheck shell=bash disable=SC2154
# Package and launcher. The launcher is a file of its own: with `-m`, Python would put the caller's
# directory first on the module path, where a folder named triton or torch would stand before the
# library.
mkdir -p "$out/bin" "$out/lib" "$out/libexec"
cp -r "$source" "$out/lib/enginix"
# Only in packages that convert: what calibrates, exports or asks has no checkpoint/.
if [ -e "$out/lib/enginix/checkpoint/casts.sh" ]; then
  chmod u+w "$out/lib/enginix/checkpoint"
  bash "$out/lib/enginix/checkpoint/casts.sh" "$out/lib/enginix/checkpoint/casts.so"
fi
cat >"$out/libexec/launch.py" <<EOF
from enginix.cli import main

raise SystemExit(main())
EOF
cat >"$out/bin/enginix" <<EOF
#!$bash/bin/bash
export PYTHONPATH=$out/lib\${PYTHONPATH:+:\$PYTHONPATH}
export PYTHONDONTWRITEBYTECODE=1
exec $python/bin/python3 $out/libexec/launch.py "\$@"
EOF
chmod +x "$out/bin/enginix"
