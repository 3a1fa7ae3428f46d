"""The compiled casts (casts.c), where they were compiled; ``numbers`` has the same in NumPy, only slower.

The Nix package and ``make setup-dev`` compile them. Which of the two computes never shows in a checkpoint.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LIBRARY = Path(__file__).with_name("casts.so")
_CASTS = ("bf16_f32", "f16_f32", "f16_bf16", "f32_bf16", "f32_f16", "bf16_f16")


@cache
def library() -> ctypes.CDLL | None:
    """None where it was not compiled, or not for this machine."""
    return load(LIBRARY)


def load(path: Path) -> ctypes.CDLL | None:
    """A compiled casts.c; None where it cannot be loaded."""
    try:
        found = ctypes.CDLL(str(path))
    except OSError:
        return None
    for name in _CASTS:
        getattr(found, name).argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    found.fp8_lookup.argtypes = (*found.f32_f16.argtypes, ctypes.c_void_p, ctypes.c_int)
    return found


def cast(x: Array, source: str, target: str, out: Array) -> bool:
    """Casts a flat array into ``out``, if that is compiled.

    Args:
        source, target: safetensors codes.

    Returns:
        Whether ``out`` is done. If not, its content means nothing: the cast is not compiled, or something is
        not finite in float16, about which NumPy decides.
    """
    lib, name = library(), f"{source}_{target}".lower()
    if lib is None or name not in _CASTS or not _plain(x, out):
        return False
    return bool(getattr(lib, name)(x.ctypes.data, out.ctypes.data, x.size) == 0)


def fp8_lookup(codes: Array, table: npt.NDArray[np.uint8], out: Array, widest: int = 64) -> bool:
    """Bytes through a table of the 128 magnitudes, their signs kept, if that is compiled.

    Args:
        widest: bytes that may be looked up at once; for tests.
    """
    lib = library()
    if lib is None or not _plain(codes, out, table):
        return False
    lib.fp8_lookup(codes.ctypes.data, out.ctypes.data, codes.size, table.ctypes.data, widest)
    return True


def _plain(*arrays: Array) -> bool:
    return all(a.flags.c_contiguous and a.flags.aligned for a in arrays)
