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


def _multiply_8_bits(w: NetworkWriter, x: Any, leaves: Leaves, rows: slice, dtype: Any, name: str) -> Any:
    """FP8, or INT8 SmoothQuant: activations with one scale, weights with one, or of INT8 one a row."""
    data_type, scales = w.data_type(dtype), leaves["weights_scaling_factor"]
    is_fp8 = leaves["weight"].dtype != np.int8
    x = _apply_prequant_scale(w, x, leaves, dtype, name)
    scale = w.constant(f"{name}.activation_scale", leaves["activation_scaling_factor"].reshape(()))
    codes = w.quantize(x, scale, w.trt.fp8 if is_fp8 else w.trt.int8, f"{name}.codes")
    x = w.dequantize(codes, scale, data_type, f"{name}.rounded")
    weight = w.constant(f"{name}.weight", leaves["weight"][None, rows].view(FLOAT8 if is_fp8 else np.int8))
    weight_scale = w.constant(f"{name}.weight_scale", scales.reshape(()) if is_fp8 else scales[rows])
    axis = None if is_fp8 else 1
    matrix = w.dequantize(weight, weight_scale, data_type, f"{name}.weight.wide", axis)
    return w.multiply_transposed(x, matrix, f"{name}.product")


def pack_int4_columns(codes: Array) -> Array:
    """Pack signed int4 [rows, columns] to bytes [rows, columns / 2]: even columns into the low half."""
    nibbles = codes.astype(np.int8).view(np.uint8) & 15
    return np.asarray(nibbles[:, 0::2] | (nibbles[:, 1::2] << 4))


def _multiply_int4(w: NetworkWriter, x: Any, leaves: Leaves, rows: slice, dtype: Any, name: str) -> Any:
    """INT4 AWQ: a scale for each block of columns of a row, and one a column of the activations."""
    x = _apply_prequant_scale(w, x, leaves, dtype, name)
    codes = unpack_int4_rows(leaves["weight"][rows.start // 2 : rows.stop // 2])
    weight = w.constant_of_halves(f"{name}.weight", pack_int4_columns(codes)[None], w.trt.int4)
    # The builder takes block scales in the type of the result alone.
    scales = leaves["weights_scaling_factor"][None, rows]
    scale = w.constant(f"{name}.weight_scale", scales.astype(dtype), exact=scales)
    matrix = w.dequantize(weight, scale, w.data_type(dtype), f"{name}.weight.wide")
    return w.multiply_transposed(x, matrix, f"{name}.product")


def _multiply_nvfp4(w: NetworkWriter, x: Any, leaves: Leaves, rows: slice, dtype: Any, name: str) -> Any:
    """NVFP4: FP4 weights and activations, an FP8 scale a block of columns, one unit of these scales.

    Both factors are widened to float32 and then cast, as NVIDIA ModelOpt exports models for TensorRT
    (modelopt/onnx/export/nvfp4_exporter.py): scales are not rounded, and the builder keeps the codes packed.
    A checkpoint of TensorRT-LLM's own form has the blocks' scales in plain order beside the tiled one.
    """
    wide, data_type = w.trt.float32, w.data_type(dtype)
    own_form = "weights_block_scaling_factor" in leaves
    blocks, unit, activation = (
        ("weights_block_scaling_factor", "weights_global_scaling_factor", "activation_global_scaling_factor")
        if own_form
        else ("weights_scaling_factor", "weights_scaling_factor_2", "activation_scaling_factor")
    )
    scale = w.constant(f"{name}.activation_scale", leaves[activation].reshape(()))
    codes, scales = w.quantize_blocks(x, scale, f"{name}.codes")
    wide_scales = w.dequantize(scales, scale, wide, f"{name}.codes.scales.wide")
    x = w.cast(w.dequantize(codes, wide_scales, wide, f"{name}.rounded"), data_type, f"{name}.rounded.narrow")
    weight = w.constant_of_halves(f"{name}.weight", leaves["weight"][None, rows], w.trt.fp4)
    block_scale = w.constant(f"{name}.weight_scale", leaves[blocks][None, rows].view(FLOAT8))
    weight_unit = w.constant(f"{name}.weight_unit", leaves[unit].reshape(()))
    wide_blocks = w.dequantize(block_scale, weight_unit, wide, f"{name}.weight_scale.wide")
    matrix = w.dequantize(weight, wide_blocks, wide, f"{name}.weight.wide")
    return w.multiply_transposed(x, w.cast(matrix, data_type, f"{name}.weight.narrow"), f"{name}.product")


def _apply_prequant_scale(w: NetworkWriter, x: Any, leaves: Leaves, dtype: Any, name: str) -> Any:
    if "prequant_scaling_factor" not in leaves:
        return x
    scales = leaves["prequant_scaling_factor"].astype(dtype).reshape(1, 1, -1)
    return w.combine(x, w.constant(f"{name}.prequant_scale", scales), "PROD", f"{name}.prescaled")


_PRODUCTS: dict[str, Callable[[NetworkWriter, Any, Leaves, slice, Any, str], Any]] = {
    "FP8": _multiply_8_bits,
    "W8A8_SQ_PER_CHANNEL": _multiply_8_bits,
    "W4A16_AWQ": _multiply_int4,
    "NVFP4": _multiply_nvfp4,
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
