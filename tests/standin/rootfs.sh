#!/usr/bin/env bash
# Makes the stand-in runtime's root file system: busybox, this machine's Python, and the stand-in programs.
#
#   tests/standin/rootfs.sh DIRECTORY TENSORRT_LLM_VERSION SITE_PACKAGES
set -euo pipefail
out=$1 version=$2 site=$3
here=${4:-$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)}
busybox=$(command -v busybox)
python=$(readlink -f /usr/bin/python3)
stdlib=$("$python" -I -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')

mkdir -p "$out"/{bin,usr/bin,usr/local/bin,etc,var/tmp,tmp,root,lib64} "$out$stdlib" "$out$site"
cp "$busybox" "$out/bin/busybox"
for applet in $("$busybox" --list | grep -vx busybox); do ln -sf busybox "$out/bin/$applet"; done

cp "$python" "$out/usr/bin/python3"
(cd "$stdlib" && find . \( -name __pycache__ -o -name test -o -name tests -o -name idlelib -o -name lib2to3 -o -name ensurepip \
  -o -name tkinter -o -name 'config-3*' -o -name dist-packages -o -name site-packages \) -prune -o -type f -print0 |
  tar --null -T - -cf -) | tar -xf - -C "$out$stdlib"
# Every library that the interpreter and its modules load, where they look for it.
{
  ldd "$python"
  find "$out$stdlib" -name '*.so' -exec ldd {} + || true
} 2>/dev/null | grep -o '/[^ ]*\.so[^ ]*' | sort -u | while read -r library; do
  [ -e "$library" ] || continue
  case $library in "$out"*) continue ;; esac
  mkdir -p "$out$(dirname "$library")"
  cp -L "$library" "$out$library"
done

cp -r --no-preserve=mode "$here/tensorrt_llm" "$out$site/tensorrt_llm"
cp -r --no-preserve=mode "$here/contract" "$out$site/tensorrt_llm/contract"
echo "__version__ = \"$version\"" >"$out$site/tensorrt_llm/version.py"
mkdir "$out$site/tensorrt_llm-$version.dist-info"
echo "stand-in" >"$out$site/tensorrt_llm-$version.dist-info/METADATA"
# As libnccl-dev has it; the stand-in has no library.
mkdir -p "$out/usr/include"
case $version in
1.1.0) nccl=(2 27 7) ;;
*) nccl=(2 28 9) ;;
esac
printf '/* stand-in */\n#define NCCL_MAJOR %s\n#define NCCL_MINOR %s\n#define NCCL_PATCH %s\n' "${nccl[@]}" >"$out/usr/include/nccl.h"
chmod -R u+w "$out"

case $site in
/opt/venv-tritonserver/*) interpreter=/opt/venv-tritonserver/bin ;;
*) interpreter=/usr/local/bin ;;
esac
mkdir -p "$out$interpreter"
cat >"$out$interpreter/python3" <<EOF
#!/bin/sh
PYTHONPATH=$site\${PYTHONPATH:+:\$PYTHONPATH} exec /usr/bin/python3 "\$@"
EOF
for program in trtllm-build trtllm-serve mpirun orted; do
  cat >"$out$interpreter/$program" <<EOF
#!/bin/sh
exec $interpreter/python3 -m tensorrt_llm.standin_${program//-/_} "\$@"
EOF
done
# tritonserver with its backends, where NVIDIA's image has them.
triton=$out/opt/tritonserver
mkdir -p "$triton/bin" "$triton/backends/python" "$triton/backends/tensorrtllm"
cat >"$triton/bin/tritonserver" <<EOF
#!/bin/sh
exec $interpreter/python3 -m tensorrt_llm.standin_tritonserver "\$@"
EOF
echo stand-in | tee "$triton/backends/python/libtriton_python.so" "$triton/backends/tensorrtllm/libtriton_tensorrtllm.so" \
  "$triton/backends/python/triton_python_backend_utils.py" >"$triton/backends/python/triton_python_backend_stub"
case $version in
1.1.0) echo 2.64.0 ;;
*) echo 2.68.0 ;;
esac >"$triton/TRITON_VERSION"
chmod +x "$out$interpreter"/* "$triton/bin/tritonserver" "$triton/backends/python/triton_python_backend_stub"
