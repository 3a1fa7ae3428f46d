"""Read an image's versions from its files; no command is run, so a server can do it at start."""

from __future__ import annotations

import re
from pathlib import Path

from enginix.runtime.table import Runtime

# Places of NCCL's header and library: Debian's packages (libnccl-dev, libnccl2), CUDA's own tree, NVIDIA's
# wheels.
NCCL_HEADERS = ("usr/include/nccl.h", "usr/local/cuda/include/nccl.h")
NCCL_DIRECTORIES = (
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/local/cuda/lib64",
    "usr/lib64",
)
_DEFINE = re.compile(r"^#define\s+NCCL_(MAJOR|MINOR|PATCH)\s+(\d+)", re.MULTILINE)
_SONAME = re.compile(r"libnccl\.so\.(\d+\.\d+\.\d+)")
# Prints the library's own version: ncclGetVersion(int*), since NCCL 1.3.4; 2.28.9 is 22809.
NCCL_VERSION_CODE = (
    "import ctypes, glob, sys\n"
    "v = ctypes.c_int()\n"
    "for name in ['libnccl.so.2', *sorted(glob.glob(sys.argv[1] + '/nvidia/nccl/lib/libnccl.so.2'))]:\n"
    "    try:\n"
    "        lib = ctypes.CDLL(name)\n"
    "    except OSError:\n"
    "        continue\n"
    "    if lib.ncclGetVersion(ctypes.byref(v)) == 0:\n"
    "        print(v.value)\n"
    "        break\n"
)


def read_distribution_versions(rootfs: Path, runtime: Runtime, name: str) -> list[str]:
    """Return the versions of a Python distribution in the image, by its metadata directories, sorted."""
    if runtime.site_packages is None:
        return []
    packages = rootfs / runtime.site_packages.lstrip("/")
    try:
        directory_names = [p.name for p in packages.glob(f"{name}-*.dist-info")]
    except OSError:
        return []
    return sorted(n.removesuffix(".dist-info").split("-", 1)[1] for n in directory_names)


def find_image_nccl(rootfs: Path, runtime: Runtime) -> str | None:
    """Return NCCL's version by header, library name or wheel; None if the image has no such file."""
    packages = (runtime.site_packages or "").lstrip("/")
    headers = [*NCCL_HEADERS, f"{packages}/nvidia/nccl/include/nccl.h"] if packages else list(NCCL_HEADERS)
    for header in headers:
        try:
            parts = dict(_DEFINE.findall((rootfs / header).read_text("utf-8", "replace")))
        except OSError:
            continue
        if len(parts) == 3:
            return f"{parts['MAJOR']}.{parts['MINOR']}.{parts['PATCH']}"
    for directory in NCCL_DIRECTORIES:
        try:
            names = sorted(p.name for p in (rootfs / directory).glob("libnccl.so.*"))
        except OSError:
            continue
        for match in map(_SONAME.fullmatch, names):
            if match is not None:
                return match.group(1)
    for cuda in ("cu13", "cu12"):
        if wheel_versions := read_distribution_versions(rootfs, runtime, f"nvidia_nccl_{cuda}"):
            return wheel_versions[0]
    return None


def parse_nccl_code(code: str) -> str | None:
    """``22809`` → ``2.28.9`` (nccl.h: NCCL_VERSION, since 2.9); None for anything else."""
    number = code.strip()
    if not (number.isascii() and number.isdigit()) or not 20900 <= int(number) < 1_000_000:
        return None
    value = int(number)
    return f"{value // 10000}.{value % 10000 // 100}.{value % 100}"


def read_image_versions(rootfs: Path | None, runtime: Runtime) -> dict[str, str]:
    """Return the image's versions of ``tensorrtLlm`` and ``nccl``, as far as known, to compare with an
    engine's manifest.
    """
    if rootfs is None:
        return {}
    image_versions = {}
    if llm := read_distribution_versions(rootfs, runtime, "tensorrt_llm"):
        image_versions["tensorrtLlm"] = llm[0].split("+")[0]
    if collective := find_image_nccl(rootfs, runtime):
        image_versions["nccl"] = collective
    return image_versions
