"""Number formats: NumPy dtypes of safetensors codes, and the casts and scalings of a conversion."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from enginix.checkpoint import compiled_casts
from enginix.model.mapped_tensors import numpy_dtype

Array = npt.NDArray[Any]
Bytes8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def bfloat16_to_float32(x: npt.NDArray[np.uint16]) -> Floats:
    """Convert exactly: bfloat16 is the upper half of a float32."""
    wide: Floats = (x.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return wide


def to_float32(x: Array, code: str) -> Floats:
    """Convert any float of the table to float32; exact except for F64."""
    if code == "BF16":
        return bfloat16_to_float32(x.view(np.uint16))
    if code == "F32":
        return x.view(np.float32)
    return x.view(numpy_dtype(code)).astype(np.float32)


def _narrow_floats(wide: Floats, target: str) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return wide.astype(numpy_dtype(target))


@cache
def _make_cast_table(source: str, target: str) -> npt.NDArray[np.uint16]:
    """Return the cast of every 16-bit pattern: a table is several times faster than element-wise casts."""
    patterns = np.arange(1 << 16, dtype=np.uint16)
    return _narrow_floats(to_float32(patterns, source), target).view(np.uint16)


STEP = 1 << 17  # elements at a time: temporaries stay in the cache, and NumPy's cost of a call is spread


def _float16_to_float32(x: npt.NDArray[np.uint16], out: Floats) -> None:
    """Convert exactly, by a few whole-array steps, several times faster than NumPy's element-wise cast.

    Sign, exponent and mantissa move to their places in a float32, whose exponent is then 112 too small;
    a multiplication corrects it, for subnormal numbers, too.
    """
    wide = out.view(np.int32)
    np.copyto(wide, x.view(np.int16))
    np.left_shift(wide, np.int32(13), out=wide)
    np.bitwise_and(wide, np.int32(~0x70001FFF), out=wide)
    np.multiply(out, np.float32(2.0**112), out=out)
    if (x & np.uint16(0x7FFF)).max() >= 0x7C00:  # infinite or not a number
        np.copyto(out, x.view(np.float16))


def _float32_to_float16(x: Floats, out: npt.NDArray[np.uint16], scratch: tuple[Array, Array, Array]) -> None:
    """Round to nearest even, in integers; NumPy's cast computes results that are not normal numbers."""
    magnitude, bits, odd = (s[: len(x)] for s in scratch)
    pattern = x.view(np.uint32)
    np.bitwise_and(pattern, np.uint32(0x7FFFFFFF), out=magnitude)
    np.right_shift(magnitude, np.uint32(13), out=bits)
    np.bitwise_and(bits, np.uint32(1), out=bits)
    np.add(bits, magnitude, out=bits)
    # half a unit, less one for even ones, and the exponents' distance; modulo 2^32
    np.add(bits, np.uint32((0xFFF - (112 << 23)) % (1 << 32)), out=bits)
    np.right_shift(bits, np.uint32(13), out=bits)
    np.bitwise_xor(pattern, magnitude, out=magnitude)
    np.right_shift(magnitude, np.uint32(16), out=magnitude)
    np.bitwise_or(magnitude, bits, out=magnitude)
    np.copyto(out, magnitude, casting="unsafe")
    np.subtract(bits, np.uint32(0x0400), out=bits)
    np.greater_equal(bits, np.uint32(0x7800), out=odd)
    places = np.flatnonzero(odd)
    if len(places):
        out[places] = _narrow_floats(x[places], "F16").view(np.uint16)


def cast_floats(x: Array, source: str, target: str, out: Array | None = None) -> Array:
    """Cast floats, rounding to nearest even.

    Args:
        x: array of ``source``'s NumPy dtype, or of an integer dtype of its width.
        out: flat array for the result, which is fastest; default is a new one, of ``x``'s shape.

    Raises:
        OverflowError: a finite value does not fit ``target`` (float16 ends at 65504).
    """
    flat = np.ascontiguousarray(x).reshape(-1).view(numpy_dtype(source))
    result = np.empty(flat.size, numpy_dtype(target)) if out is None else out
    if compiled_casts.cast_compiled(flat, source, target, result):
        return result if out is not None else result.reshape(x.shape)
    if (source, target) == ("F32", "F16"):
        size = min(STEP, flat.size)
        scratch = (np.empty(size, np.uint32), np.empty(size, np.uint32), np.empty(size, np.bool_))
    for begin in range(0, flat.size, STEP):
        part, into = flat[begin : begin + STEP], result[begin : begin + STEP]
        if source == target:
            np.copyto(into, part)
        elif source == "BF16" and target == "F32":
            np.copyto(into.view(np.uint32), part.view(np.uint16))
            np.left_shift(into.view(np.uint32), np.uint32(16), out=into.view(np.uint32))
        elif source == "F16" and target == "F32":
            _float16_to_float32(part.view(np.uint16), into)
        elif source == "F32" and target == "F16":
            _float32_to_float16(part, into.view(np.uint16), scratch)
        elif source == "F32":
            with np.errstate(over="ignore", invalid="ignore"):
                np.copyto(into, part, casting="unsafe")
        else:
            # "wrap" spares the bounds check, which 16-bit indexes into 65536 entries cannot fail.
            np.take(
                _make_cast_table(source, target), part.view(np.uint16), mode="wrap", out=into.view(np.uint16)
            )
        if target == "F16" and source != target:
            _check_float16(part, source, into)
    return result if out is not None else result.reshape(x.shape)


def _check_float16(x: Array, source: str, narrow: Array) -> None:
    """Raise OverflowError where a finite value of ``x`` became infinite."""
    # The largest signed pattern is a positive value's, the largest unsigned one a negative value's.
    bits = narrow.view(np.uint16)
    if bits.view(np.int16).max() < 0x7C00 and bits.max() < 0xFC00:
        return
    wide = to_float32(x, source)
    if (np.isfinite(wide) & np.isinf(narrow)).any():
        raise OverflowError(f"{float(np.abs(wide[np.isfinite(wide)]).max()):g} does not fit float16")


@cache
def list_fp8_values() -> Floats:
    """Return the 256 float8_e4m3fn values, by byte."""
    values: Floats
    values = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return values


@lru_cache(16)
def make_fp8_rescale_table(scale: float, target: float) -> Bytes8:
    """Return the 256 bytes, dequantized with ``scale`` and quantized with ``target``.

    In float32 and in this order, as TensorRT-LLM does: fp8(value * scale / target). The sign is always kept.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        values = (list_fp8_values() * np.float32(scale)) / np.float32(target)
        return values.astype(np.float32).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)


@lru_cache(16)
def _make_fp8_pair_table(scale: float, target: float) -> npt.NDArray[np.uint16]:
    """Return a table of two bytes → two bytes: 65536 entries cost no more to look up than 256."""
    single = make_fp8_rescale_table(scale, target).astype(np.uint16)
    table: npt.NDArray[np.uint16] = (single[:, None] << np.uint16(8) | single[None, :]).reshape(-1)
    return table


def rescale_fp8(codes: Bytes8, scale: float, target: float, out: Bytes8 | None = None) -> Bytes8:
    """Rescale bytes of float8_e4m3fn from ``scale`` to ``target``; flat, in ``out`` if that is given."""
    flat = np.ascontiguousarray(codes).reshape(-1)
    result = np.empty(flat.size, np.uint8) if out is None else out
    if compiled_casts.lookup_fp8(flat, make_fp8_rescale_table(scale, target), result):
        return result
    table, even = _make_fp8_pair_table(scale, target), flat.size // 2 * 2
    for begin in range(0, even, 2 * STEP):
        end = min(begin + 2 * STEP, even)
        np.take(table, flat[begin:end].view(np.uint16), mode="wrap", out=result[begin:end].view(np.uint16))
    if even != flat.size:
        result[even] = table[int(flat[even])] & 0xFF
    return result


@cache
def list_fp8_steps() -> Floats:
    """Return the gap from each float8_e4m3fn value to its neighbour away from zero, by byte."""
    steps = np.empty(256, np.float32)
    positive = list_fp8_values()[:127]  # 127 is NaN
    steps[:126] = np.diff(positive)
    steps[126:128] = steps[125]
    steps[128:] = steps[:128]
    return steps


def quantize_fp8_rows(x: Array, code: str) -> tuple[Array, Floats]:
    """Quantize rows to float8_e4m3fn: codes [rows, columns], and each row's scale [rows].

    The scale is the largest magnitude over 448, at least 1 / (448 * 512).
    """
    wide = to_float32(x, code)
    scale = np.abs(wide).max(axis=1) / np.float32(448)
    scale = np.maximum(scale, np.float32(1 / (448 * 512)))
    return (wide / scale[:, None]).astype(ml_dtypes.float8_e4m3fn), scale


# float4_e2m1 by nibble, and the gap to the neighbour away from zero
FP4_VALUES: Floats = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
FP4_STEPS: Floats = np.array([0.5, 0.5, 0.5, 0.5, 1, 1, 2, 2] * 2, np.float32)


def interleave_tiles(scales: bytes, width: int) -> bytes:
    """Reorder block scales, whole tiles of 128 rows by 4 columns, as the FP4 kernels read them.

    Within a tile a scale lies at (row % 32) * 16 + row % 128 // 32 * 4 + column % 4; tiles follow row-major.
    """
    tiles = np.frombuffer(scales, np.uint8).reshape(-1, 4, 32, width // 4, 4)
    return bytes(tiles.transpose(0, 3, 2, 1, 4).tobytes())


def unpack_int4_rows(packed: Array) -> Floats:
    """Unpack bytes [out / 2, in] to signed int4 [out, in]: even rows from the low nibble."""
    signed = packed.view(np.int8)
    low = (signed << 4).astype(np.int8) >> 4
    values = np.stack([low, signed >> 4], axis=1).reshape(-1, packed.shape[1])
    result: Floats = values.astype(np.float32)
    return result


# dtype → bits that are all set in NaN and infinities alone: the exponent's; E4M3 has no infinities
_NON_FINITE = {
    "F32": (np.uint32, 0x7F800000),
    "BF16": (np.uint16, 0x7F80),
    "F16": (np.uint16, 0x7C00),
    "F8_E4M3": (np.uint8, 0x7F),
}


def are_any_non_finite(values: Array, dtype: str) -> bool:
    """Return whether contiguous values, or their bytes, hold NaN or an infinity; integers never do."""
    if dtype not in _NON_FINITE or not values.size:
        return False
    kind, mask = _NON_FINITE[dtype]
    bits = values.view(kind)
    compiled = compiled_casts.has_masked_bits(bits, mask)
    return bool((bits & kind(mask)).max() == mask) if compiled is None else compiled
