"""The compiled casts (casts.c), where they were compiled; ``numbers`` has slower ones in NumPy.

The Nix package and ``make setup-dev`` compile them beside the source. If pip installed enginix, the first use
compiles them into the user's cache, if there is a compiler. Both give the same checkpoint.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from enginix import process
from enginix.errors import MachineError
from enginix.files import find_user_cache

Array = npt.NDArray[Any]

LIBRARY = Path(__file__).with_name("casts.so")
SOURCE = Path(__file__).with_name("casts.c")
SCRIPT = Path(__file__).with_name("casts.sh")
COMPILE_SECONDS = 60
_CASTS = ("bf16_f32", "f16_f32", "f16_bf16", "f32_bf16", "f32_f16", "bf16_f16")


@cache
def find_compiled_casts() -> ctypes.CDLL | None:
    """Return the compiled casts; None if they are not compiled and cannot be."""
    return load_compiled_casts(LIBRARY) or _load_from_cache()


def cache_directory() -> Path:
    """Return the directory into which the first use of an installation compiles the casts."""
    return find_user_cache() / "casts"


def _load_from_cache() -> ctypes.CDLL | None:
    """Return the casts from the user's cache, after compiling them if needed."""
    try:
        digest = hashlib.sha256(SOURCE.read_bytes() + SCRIPT.read_bytes()).hexdigest()
        directory = cache_directory()
        path = directory / f"{platform.machine()}-{digest[:32]}.so"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A file that other users can write is not loaded as code.
        if not _is_private(directory) or (path.exists() and not _is_private(path)):
            return None
        return (load_compiled_casts(path) if path.exists() else None) or _compile_casts(path)
    except OSError:
        return None


def _is_private(path: Path) -> bool:
    info = path.stat()
    return info.st_uid == os.geteuid() and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _compile_casts(path: Path) -> ctypes.CDLL | None:
    bash, compiler = shutil.which("bash"), shutil.which(os.environ.get("CC") or "cc")
    if bash is None or compiler is None:
        return None
    with tempfile.TemporaryDirectory(prefix=".compile-", dir=path.parent) as work:
        compiled = Path(work) / path.name
        try:
            completed = process.run_program(
                [bash, SCRIPT, compiled], env={"CC": compiler}, check=False, timeout=COMPILE_SECONDS
            )
        except MachineError:
            return None
        if completed.returncode != 0 or load_compiled_casts(compiled) is None:
            return None
        compiled.chmod(0o700)
        os.replace(compiled, path)
    return load_compiled_casts(path)


def load_compiled_casts(path: Path) -> ctypes.CDLL | None:
    """Load a compiled casts.c; None if it cannot be loaded."""
    try:
        casts = ctypes.CDLL(str(path))
    except OSError:
        return None
    for name in _CASTS:
        getattr(casts, name).argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    casts.fp8_lookup.argtypes = (*casts.f32_f16.argtypes, ctypes.c_void_p)
    return casts


def cast_compiled(x: Array, source: str, target: str, out: Array) -> bool:
    """Cast a flat array into ``out``, if that cast is compiled.

    Args:
        source, target: safetensors codes.

    Returns:
        Whether ``out`` holds the result. If not, its content is undefined: the cast is not compiled, or a
        value is not finite in float16, which NumPy then handles.
    """
    lib, name = find_compiled_casts(), f"{source}_{target}".lower()
    if lib is None or name not in _CASTS or not _are_contiguous(x, out):
        return False
    return bool(getattr(lib, name)(x.ctypes.data, out.ctypes.data, x.size) == 0)


def transpose_matrix(x: Array, out: Array) -> None:
    """Write the transpose of x [rows, columns], elements of 2 or 4 bytes, to ``out`` [columns, rows]."""
    lib = find_compiled_casts()
    function = getattr(lib, f"transpose_{x.itemsize}", None)
    if function is None or x.strides[1] != x.itemsize or not _are_contiguous(out):
        np.copyto(out, x.T)
        return
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_size_t] * 3)
    function.restype = None
    function(x.ctypes.data, out.ctypes.data, *x.shape, x.strides[0] // x.itemsize)


def has_masked_bits(values: Array, mask: int) -> bool | None:
    """Return whether an element has all bits of ``mask``; None where that is not compiled."""
    function = getattr(find_compiled_casts(), f"any_with_{values.itemsize}", None)
    if function is None or not _are_contiguous(values):
        return None
    unsigned = {2: ctypes.c_uint16, 4: ctypes.c_uint32}[values.itemsize]
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, unsigned)
    return bool(function(values.ctypes.data, values.size, mask))


def read_lines(file: int, begin: int, stride: int, out: Array) -> int:
    """Read the beginning of lines of a file, ``stride`` bytes apart, into the rows of ``out``.

    Returns:
        How many lines are read; 0 where the reading is not compiled.
    """
    function = getattr(find_compiled_casts(), "read_lines", None)
    if function is None or not _are_contiguous(out):
        return 0
    sizes = [ctypes.c_size_t] * 3
    function.argtypes = (ctypes.c_int, ctypes.c_int64, *sizes, ctypes.c_void_p)
    function.restype = ctypes.c_size_t
    width = out.shape[1] * out.itemsize
    return int(function(file, begin, stride, width, len(out), out.ctypes.data))


def lookup_fp8(codes: Array, table: npt.NDArray[np.uint8], out: Array) -> bool:
    """Map bytes through a table of the 128 magnitudes, signs kept, if that is compiled."""
    lib = find_compiled_casts()
    if lib is None or not _are_contiguous(codes, out, table):
        return False
    lib.fp8_lookup(codes.ctypes.data, out.ctypes.data, codes.size, table.ctypes.data)
    return True


def _are_contiguous(*arrays: Array) -> bool:
    return all(a.flags.c_contiguous and a.flags.aligned for a in arrays)
