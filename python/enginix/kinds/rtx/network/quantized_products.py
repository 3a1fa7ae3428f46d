"""Products of a quantized module, one function a number format, as layers that the builder keeps packed.

Weights stay in the checkpoint's codes; the builder unfolds none of these (docs/reference/rtx.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from enginix.checkpoint.numbers import unpack_int4_rows
from enginix.kinds.rtx.network.writer import FLOAT8, NetworkWriter

Array = npt.NDArray[Any]
Leaves = Mapping[str, Array]


def _multiply_fp8(w: NetworkWriter, x: Any, leaves: Leaves, rows: slice, dtype: Any, name: str) -> Any:
    """FP8 weights and activations, each with one scale."""
    trt, data_type = w.trt, w.data_type(dtype)
    scale = w.constant(f"{name}.activation_scale", leaves["activation_scaling_factor"].reshape(()))
    codes = w.quantize(x, scale, trt.fp8, f"{name}.codes")
    x = w.dequantize(codes, scale, data_type, f"{name}.rounded")
    weight = w.constant(f"{name}.weight", leaves["weight"][None, rows].view(FLOAT8))
    weight_scale = w.constant(f"{name}.weight_scale", leaves["weights_scaling_factor"].reshape(()))
    matrix = w.dequantize(weight, weight_scale, data_type, f"{name}.weight.wide")
    return w.multiply_transposed(x, matrix, f"{name}.product")


def _multiply_int8(w: NetworkWriter, x: Any, leaves: Leaves, rows: slice, dtype: Any, name: str) -> Any:
    """INT8 SmoothQuant: activations with one scale, weights with one a row."""
    trt, data_type = w.trt, w.data_type(dtype)
    x = _apply_prequant_scale(w, x, leaves, dtype, name)
    scale = w.constant(f"{name}.activation_scale", leaves["activation_scaling_factor"].reshape(()))
    codes = w.quantize(x, scale, trt.int8, f"{name}.codes")
    x = w.dequantize(codes, scale, data_type, f"{name}.rounded")
    weight = w.constant(f"{name}.weight", leaves["weight"][None, rows].view(np.int8))
    weight_scale = w.constant(f"{name}.weight_scale", leaves["weights_scaling_factor"][rows])
    matrix = w.dequantize(weight, weight_scale, data_type, f"{name}.weight.wide", axis=1)
    return w.multiply_transposed(x, matrix, f"{name}.product")


def pack_int4_columns(codes: Array) -> Array:
    """Pack signed int4 [rows, columns] to bytes [rows, columns / 2]: even columns into the low half."""
    nibbles = codes.astype(np.int8).view(np.uint8) & 15
    return np.asarray(nibbles[:, 0::2] | (nibbles[:, 1::2] << 4))


def _multiply_int4(w: NetworkWriter, x: Any, leaves: Leaves, rows: slice, dtype: Any, name: str) -> Any:
    """INT4 AWQ: a scale for each block of columns of a row, and one a column of the activations."""
    x = _apply_prequant_scale(w, x, leaves, dtype, name)
    codes = unpack_int4_rows(leaves["weight"][rows.start // 2 : rows.stop // 2])
    weight = w.constant_int4(f"{name}.weight", pack_int4_columns(codes)[None])
    # The builder takes block scales in the type of the result alone.
    scales = leaves["weights_scaling_factor"][None, rows]
    scale = w.constant(f"{name}.weight_scale", scales.astype(dtype), exact=scales)
    matrix = w.dequantize(weight, scale, w.data_type(dtype), f"{name}.weight.wide")
    return w.multiply_transposed(x, matrix, f"{name}.product")


def _apply_prequant_scale(w: NetworkWriter, x: Any, leaves: Leaves, dtype: Any, name: str) -> Any:
    if "prequant_scaling_factor" not in leaves:
        return x
    scales = leaves["prequant_scaling_factor"].astype(dtype).reshape(1, 1, -1)
    return w.combine(x, w.constant(f"{name}.prequant_scale", scales), "PROD", f"{name}.prescaled")


_PRODUCTS: dict[str, Callable[[NetworkWriter, Any, Leaves, slice, Any, str], Any]] = {
    "FP8": _multiply_fp8,
    "W8A8_SQ_PER_CHANNEL": _multiply_int8,
    "W4A16_AWQ": _multiply_int4,
}
PRODUCT_FORMATS = tuple(_PRODUCTS)


def multiply_by_module(
    w: NetworkWriter, x: Any, algorithm: str, leaves: Leaves, rows: slice, dtype: Any, name: str
) -> Any:
    """Add x Wᵀ of some rows of a quantized module.

    Args:
        x: [B, S, columns] in ``dtype``.
        algorithm: one of :data:`PRODUCT_FORMATS`.
        leaves: the module's tensors by their last name.
        rows: of the whole matrix; both ends even for INT4.
    """
    return _PRODUCTS[algorithm](w, x, leaves, rows, dtype, name)
