"""A checkpoint's tensors in the form of the export: bits, with the exporter's casts, a block of rows at a
time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from enginix.kinds.edgellm.errors import ExportError
from enginix.model import TensorInfo
from enginix.model.mapped_tensors import map_tensor

Bits = npt.NDArray[Any]
BLOCK_BYTES = 1 << 25  # bytes of float32 that are in memory at once
FLOAT_DTYPES = ("F32", "F16", "BF16")
# Stored type → ONNX types that hold the very same bits.
SAME_BITS = {
    "F8_E4M3": ("FLOAT8E4M3FN",),
    "I8": ("INT8",),
    "U8": ("FLOAT4E2M1", "UINT8"),
    "F32": ("FLOAT",),
    "F16": ("FLOAT16",),
}


def list_onnx_forms(dtype: str) -> tuple[str, ...]:
    """List the ONNX types in which the export may hold a tensor of safetensors type ``dtype``."""
    cast = ("FLOAT16", "FLOAT") if dtype in FLOAT_DTYPES else ()
    return tuple(dict.fromkeys((*SAME_BITS.get(dtype, ()), *cast)))


def to_float16(values: npt.NDArray[Any], where: str) -> npt.NDArray[np.float16]:
    """Convert to the nearest float16, ties to even.

    Raises:
        ExportError: a finite value is beyond float16, in which Edge-LLM computes.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        wide = values.astype(np.float32)
        narrow = wide.astype(np.float16)
    lost = np.isinf(narrow) & np.isfinite(wide)
    if lost.any():
        raise ExportError(
            f"{int(lost.sum())} values are beyond float16's 65504, which TensorRT Edge-LLM computes in",
            where=where,
            fix='serve this model by a kind that computes in bfloat16: "tensorrt" or "llmapi"',
        )
    return narrow


@dataclass(frozen=True)
class Expected:
    """One tensor in the ONNX type ``form``, as rows."""

    tensor: TensorInfo
    form: str

    @property
    def shape(self) -> tuple[int, int]:
        """Return rows and columns; columns in bytes if NumPy lacks the type."""
        shape = self.tensor.shape
        if not shape:
            return 1, 1
        return (1, shape[0]) if len(shape) == 1 else (shape[0], int(np.prod(shape[1:])))

    def rows(self, begin: int, end: int) -> Bits:
        """Return rows as bits: uint16 for float16, uint32 for float32, uint8 for all others."""
        part = map_tensor(self.tensor).reshape(self.shape)[begin:end]
        if self.form == "FLOAT16":
            return to_float16(part, self.tensor.name).view(np.uint16)
        if self.form == "FLOAT":
            return part.astype(np.float32).view(np.uint32)
        return part.view(np.uint8)

    def blocks(self) -> Iterator[tuple[int, Bits]]:
        """Yield (first row, rows) over the whole tensor."""
        rows, columns = self.shape
        step = max(1, BLOCK_BYTES // max(1, 4 * columns))
        for begin in range(0, rows, step):
            yield begin, self.rows(begin, min(rows, begin + step))

    def equals(self, stored: Bits | Expected) -> bool:
        """Tell whether bits, or another tensor in its type, have the same shape and values."""
        if stored.shape != self.shape:
            return False
        for begin, part in self.blocks():
            end = begin + len(part)
            other = stored.rows(begin, end) if isinstance(stored, Expected) else stored[begin:end]
            if not np.array_equal(part, other):
                return False
        return True


def view_bits(array: npt.NDArray[Any]) -> Bits:
    """Return an unsigned view, to compare with ``Expected.rows``."""
    return array.view({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[array.dtype.itemsize])
