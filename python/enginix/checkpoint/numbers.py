"""Number formats: NumPy dtypes of safetensors codes, and the casts and scalings of a conversion."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_DTYPES: dict[str, Any] = {
    "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "U8": np.uint8, "I8": np.int8,
    "I16": np.int16, "I32": np.int32, "I64": np.int64, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64,
    "BOOL": np.bool_,
}  # fmt: skip


def numpy_dtype(code: str) -> np.dtype[Any]:
    """NumPy dtype of a safetensors code; little-endian, as the format is."""
    found: np.dtype[Any] = np.dtype(_DTYPES[code])
    return found


def bfloat16_to_float32(x: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Exact: bfloat16 is the upper half of a float32."""
    wide: npt.NDArray[np.float32] = (x.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return wide


def to_float32(x: Array, code: str) -> npt.NDArray[np.float32]:
    """Any float of the table as float32; exact but for F64."""
    if code == "BF16":
        return bfloat16_to_float32(x.view(np.uint16))
    if code == "F32":
        return x.view(np.float32)
    return x.view(numpy_dtype(code)).astype(np.float32)


def _narrow(wide: npt.NDArray[np.float32], target: str) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return wide.astype(numpy_dtype(target))


@cache
def _pairs(source: str, target: str) -> npt.NDArray[np.uint16]:
    """The cast of every 16-bit pattern: a table is several times faster than element-wise casts."""
    every = np.arange(1 << 16, dtype=np.uint16)
    return _narrow(to_float32(every, source), target).view(np.uint16)


def cast(x: Array, source: str, target: str) -> Array:
    """Casts floats, rounding to nearest even.

    Args:
        x: array of ``source``'s NumPy dtype, or of its bytes' width.

    Raises:
        OverflowError: a finite value does not fit ``target`` (float16 ends at 65504).
    """
    if source == target:
        return x
    if target == "F32":
        return to_float32(x, source)
    narrow: Array
    if source == "F32":
        narrow = _narrow(x.view(np.float32), target)
    else:
        # "wrap" spares the bounds check, which 16-bit indexes into 65536 entries cannot fail.
        narrow = np.take(_pairs(source, target), x.view(np.uint16), mode="wrap").view(numpy_dtype(target))
    if target == "F16" and x.size:
        magnitude = narrow.view(np.uint16) & np.uint16(0x7FFF)
        if magnitude.max() >= 0x7C00:
            wide = to_float32(x, source)
            if (np.isfinite(wide) & (magnitude == 0x7C00)).any():
                raise OverflowError(f"{float(np.abs(wide[np.isfinite(wide)]).max()):g} does not fit float16")
    return narrow


@cache
def fp8_values() -> npt.NDArray[np.float32]:
    """The 256 float8_e4m3fn values, by byte."""
    values: npt.NDArray[np.float32]
    values = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return values


@lru_cache(16)
def fp8_rescale_table(scale: float, target: float) -> npt.NDArray[np.uint16]:
    """Two bytes → two bytes: dequantize with ``scale``, quantize with ``target``.

    In float32 and in this order, as TensorRT-LLM does: fp8(value * scale / target). Two at once, since a
    table of 65536 entries costs no more to look up than one of 256.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        values = (fp8_values() * np.float32(scale)) / np.float32(target)
        single = values.astype(np.float32).astype(ml_dtypes.float8_e4m3fn).view(np.uint8).astype(np.uint16)
    table: npt.NDArray[np.uint16] = (single[:, None] << np.uint16(8) | single[None, :]).reshape(-1)
    return table


def fp8_rescale(codes: npt.NDArray[np.uint8], scale: float, target: float) -> npt.NDArray[np.uint8]:
    """Bytes of float8_e4m3fn with ``scale``, as bytes with ``target``."""
    flat = np.ascontiguousarray(codes).reshape(-1)
    even = flat.size // 2 * 2
    pairs = np.take(fp8_rescale_table(scale, target), flat[:even].view(np.uint16), mode="wrap")
    result: npt.NDArray[np.uint8] = pairs.view(np.uint8)
    if even != flat.size:
        last = fp8_rescale_table(scale, target)[int(flat[-1])] & 0xFF
        result = np.append(result, np.uint8(last))
    return result


@cache
def fp8_steps() -> npt.NDArray[np.float32]:
    """Gap from each float8_e4m3fn value to its neighbour away from zero; by byte."""
    steps = np.empty(256, np.float32)
    positive = fp8_values()[:127]  # 127 is NaN
    steps[:126] = np.diff(positive)
    steps[126:128] = steps[125]
    steps[128:] = steps[:128]
    return steps


def fp8_quantize_rows(x: Array, code: str) -> tuple[Array, npt.NDArray[np.float32]]:
    """Rows to float8_e4m3fn: codes [rows, columns], and each row's scale [rows].

    The scale is the largest magnitude over 448, at least 1 / (448 * 512).
    """
    wide = to_float32(x, code)
    scale = np.abs(wide).max(axis=1) / np.float32(448)
    scale = np.maximum(scale, np.float32(1 / (448 * 512)))
    return (wide / scale[:, None]).astype(ml_dtypes.float8_e4m3fn), scale


# float4_e2m1 by nibble, and the gap to the neighbour away from zero
FP4_VALUES: npt.NDArray[np.float32] = np.array(
    [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32
)
FP4_STEPS: npt.NDArray[np.float32] = np.array([0.5, 0.5, 0.5, 0.5, 1, 1, 2, 2] * 2, np.float32)


def interleave_tiles(scales: bytes, width: int) -> bytes:
    """Block scales, whole tiles of 128 rows by 4 columns, in the order that the FP4 kernels read.

    Within a tile a scale lies at (row % 32) * 16 + row % 128 // 32 * 4 + column % 4; tiles follow row-major.
    """
    tiles = np.frombuffer(scales, np.uint8).reshape(-1, 4, 32, width // 4, 4)
    return bytes(tiles.transpose(0, 3, 2, 1, 4).tobytes())


def unpack_int4_rows(packed: Array) -> npt.NDArray[np.float32]:
    """Signed int4 [out, in] of bytes [out / 2, in]: even rows in the low nibble, odd rows in the high."""
    signed = packed.view(np.int8)
    low = (signed << 4).astype(np.int8) >> 4
    values = np.stack([low, signed >> 4], axis=1).reshape(-1, packed.shape[1])
    result: npt.NDArray[np.float32] = values.astype(np.float32)
    return result
