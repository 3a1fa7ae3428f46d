# shellcheck shell=bash disable=SC2154
# {bin/tritonserver, backends/python, caches} as Triton expects them, the wheel's libraries two levels up from
# where its binaries look for them.
python3 -m zipfile -e "$src" wheel
cd wheel || exit
stub=pytriton/tritonserver/python_backend_stubs/$pythonVersion/triton_python_backend_stub
if [ ! -e "$stub" ]; then
  echo "error: the wheel has no stub for Python $pythonVersion; it has: $(cd pytriton/tritonserver/python_backend_stubs && echo *)" >&2
  exit 1
fi
site=$out/lib/site-packages
mkdir -p "$site/pytriton"
cp -r nvidia_pytriton.libs "$site/"
cp -r pytriton/tritonserver "$site/pytriton/"
rm -r "$site/pytriton/tritonserver/python_backend_stubs"
# What zipfile unpacks has no modes.
chmod 755 "$site/pytriton/tritonserver/bin/tritonserver"
install -m 755 "$stub" "$site/pytriton/tritonserver/backends/python/triton_python_backend_stub"
for part in bin backends caches; do
  ln -s "lib/site-packages/pytriton/tritonserver/$part" "$out/$part"
done
# The stub ignores PYTHONDONTWRITEBYTECODE: started by root on a single-user Nix store, it would compile this into the store.
python3 -m compileall -q --invalidation-mode unchecked-hash "$out/backends/python"
