#!/usr/bin/env python3
"""Packs vLLM's wheels for a Hopper GPU into archives that a machine without a network can be given in parts.

    tests/gpu/wheels.sh --vllm              # downloads the wheels and runs this
    python3 tests/gpu/pack_vllm.py WHEELS PARTS [--whole] [--most MIB]

There, each part is unpacked into one directory (``tar -xJf``), which then stands on PYTHONPATH. What Hopper
does not execute is left out: FlashAttention 2, kernels of other architectures, headers, benchmarks. In
compiled libraries the code of other GPUs is overwritten with zeros, which compress to nothing; the driver
picks an entry of a fat binary by the architecture in its header, and those are kept. ``--whole`` leaves
libraries as they are.
"""

from __future__ import annotations

import argparse
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

# A fat binary is a header of 16 bytes, then entries: kind, size of the entry's header, size of the code, and at
# byte 28 the architecture. NVIDIA documents no layout; every byte of vLLM's libraries is accounted for by this.
FATBIN_MAGIC = struct.pack("<I", 0xBA55ED50)
ELF_KIND, PTX_KIND = 2, 1
ARCHITECTURE = 90
LEFT_OUT = (
    "vllm/vllm_flash_attn/_vllm_fa2_C*",
    "vllm/vllm-rs",
    "vllm/benchmarks/datasets/*",
    "vllm/third_party/fmha_sm100/*",
    "vllm/third_party/deep_gemm/include/*",
    "vllm/third_party/deep_gemm/_C.cpython-31[0134]*",
    "vllm/_qutlass_C*",
    "vllm/_rust_tool_parser*",
    "vllm/vllm_flash_attn/cute/*sm100*",
    "vllm/distributed/*.jpg",
    "vllm/entrypoints/serve/instrumentator/static/*",
    "mistral_common/data/*",
    "pycountry/locales/*",
    "pulp/solverdir/*",
    "*/tests/*",
    "*.dist-info/licenses/*",
    "*.dist-info/sboms/*",
    "*.h",
    "*.hpp",
    "*.cuh",
)


def unpack_wheels(wheels: Path, site: Path) -> None:
    """Put the content of all wheels into ``site``, but for what is left out."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                name = entry.filename
                head, _, rest = name.partition("/")
                if head.endswith(".data"):
                    scheme, _, name = rest.partition("/")
                    if scheme not in ("purelib", "platlib"):
                        continue
                if entry.is_dir() or any(fnmatch(name, pattern) for pattern in LEFT_OUT):
                    continue
                target = site / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, target.open("wb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)


def list_entries(data: bytearray, start: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield kind, architecture, and begin and end of the code, of each entry of a fat binary."""
    _, _, header_size, size = struct.unpack_from("<IHHQ", data, start)
    at, end = start + header_size, start + header_size + size
    if header_size != 16 or end > len(data):
        return
    while at < end:
        kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", data, at)
        (architecture,) = struct.unpack_from("<I", data, at + 28)
        if kind not in (ELF_KIND, PTX_KIND) or entry_header < 64 or at + entry_header + entry_size > end:
            return
        yield kind, architecture, at + entry_header, at + entry_header + entry_size
        at += entry_header + entry_size


def clear_other_architectures(library: Path) -> tuple[int, int]:
    """Overwrite code of other architectures where there is some for this one; return bytes cleared, and kept.

    A fat binary without code for this architecture keeps its PTX, which the driver may compile.
    """
    data = bytearray(library.read_bytes())
    cleared = kept = 0
    at = data.find(FATBIN_MAGIC)
    while at >= 0:
        entries = list(list_entries(data, at))
        has_own = any(kind == ELF_KIND and arch == ARCHITECTURE for kind, arch, _, _ in entries)
        for kind, architecture, begin, end in entries:
            is_own = kind == ELF_KIND and architecture == ARCHITECTURE
            if is_own or (kind == PTX_KIND and not has_own):
                kept += end - begin
            else:
                data[begin:end] = bytes(end - begin)
                cleared += end - begin
        at = data.find(FATBIN_MAGIC, entries[-1][3] if entries else at + 4)
    if cleared:
        library.write_bytes(data)
    return cleared, kept


def estimate_compressed_size(path: Path) -> int:
    """Return about how many bytes a file takes in an archive."""
    return len(zlib.compress(path.read_bytes(), 1))


def write_archive(site: Path, names: list[str], out: Path) -> int:
    """Write an archive that depends on nothing but names and contents; return its size."""

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = info.mtime = 0
        info.uname = info.gname = ""
        info.mode = 0o755 if info.name.endswith(".so") else 0o644
        return info

    with tarfile.open(out, "w:xz", preset=4) as archive:
        for name in names:
            archive.add(site / name, name, recursive=False, filter=plain)
    return out.stat().st_size


def main() -> int:
    """Pack, and print what each part has."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheels", type=Path)
    parser.add_argument("parts", type=Path)
    parser.add_argument("--whole", action="store_true", help="leave libraries as they are")
    parser.add_argument("--most", type=float, default=56.0, metavar="MIB", help="of one part (default: 56)")
    args = parser.parse_args()
    args.parts.mkdir(parents=True, exist_ok=True)
    for old in args.parts.glob("part-*.tar.xz"):
        old.unlink()
    with tempfile.TemporaryDirectory() as work:
        site = Path(work)
        unpack_wheels(args.wheels, site)
        for library in sorted(site.rglob("*.so")) + sorted(site.rglob("*.so.*")):
            subprocess.run(["strip", "--strip-debug", str(library)], check=False, stderr=subprocess.DEVNULL)
            if not args.whole:
                cleared, kept = clear_other_architectures(library)
                if cleared:
                    sys.stderr.write(f"{library.name}: {cleared >> 20} MiB cleared, {kept >> 20} MiB kept\n")
        files = sorted(path for path in site.rglob("*") if path.is_file())
        with ThreadPoolExecutor(2) as pool:
            sizes = dict(zip(files, pool.map(estimate_compressed_size, files), strict=True))
        # Large files first, each into the part that has most room: parts are of about one size.
        count = max(1, -(-sum(sizes.values()) // int(args.most * (1 << 20))))
        parts: list[list[Path]] = [[] for _ in range(count)]
        for path in sorted(files, key=lambda p: (-sizes[p], p)):
            min(parts, key=lambda part: sum(sizes[p] for p in part)).append(path)
        names = [sorted(str(p.relative_to(site)) for p in part) for part in parts]
        outs = [args.parts / f"part-{number}-of-{count}.tar.xz" for number in range(1, count + 1)]
        with ThreadPoolExecutor(2) as pool:
            written = list(pool.map(partial(write_archive, site), names, outs))
        for out, part_names, size in zip(outs, names, written, strict=True):
            sys.stdout.write(f"{out.name}: {len(part_names)} files, {size / (1 << 20):.1f} MiB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
