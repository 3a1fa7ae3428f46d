# shellcheck shell=bash disable=SC2154
# Package and launcher; -P keeps the caller's directory off the module path.
mkdir -p "$out/bin" "$out/lib"
cp -r "$source" "$out/lib/enginix"
cat >"$out/bin/enginix" <<EOF
#!$bash/bin/bash
export PYTHONPATH=$out/lib\${PYTHONPATH:+:\$PYTHONPATH}
export PYTHONDONTWRITEBYTECODE=1
exec $python/bin/python3 -m enginix "\$@"
EOF
chmod +x "$out/bin/enginix"
