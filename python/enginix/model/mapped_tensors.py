"""Map tensors of safetensors files as NumPy arrays."""

from __future__ import annotations

import mmap
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from enginix.model.safetensors import TensorInfo

Array = npt.NDArray[Any]

_DTYPES: dict[str, Any] = {
    "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "U8": np.uint8, "I8": np.int8,
    "I16": np.int16, "I32": np.int32, "I64": np.int64, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64,
    "BOOL": np.bool_, "F8_E8M0": ml_dtypes.float8_e8m0fnu, "C64": np.complex64,
}  # fmt: skip


def numpy_dtype(code: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a safetensors code; little-endian, as the format is."""
    dtype: np.dtype[Any] = np.dtype(_DTYPES[code])
    return dtype


def map_tensor(info: TensorInfo) -> Array:
    """Return a tensor mapped read-only, with its NumPy dtype and shape."""
    if info.nbytes == 0:
        return np.zeros(info.shape, numpy_dtype(info.dtype))
    # np.memmap also resolves the path, for every tensor: twice as much work as mapping it.
    before = info.begin % mmap.ALLOCATIONGRANULARITY
    with open(info.path, "rb") as file:
        mapped = mmap.mmap(
            file.fileno(), info.nbytes + before, access=mmap.ACCESS_READ, offset=info.begin - before
        )
    return np.frombuffer(mapped, numpy_dtype(info.dtype), offset=before).reshape(info.shape)
