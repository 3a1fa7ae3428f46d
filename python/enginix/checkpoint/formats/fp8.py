"""float8_e4m3fn: one scale a matrix (``FP8``), or one an output row (``FP8_PER_CHANNEL_PER_TOKEN``)."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from enginix.checkpoint.byte_sources import BytePart, KnownBytes, RowTransform
from enginix.checkpoint.config import CheckpointConfig
from enginix.checkpoint.formats.base import Dequantized, Spec, per_expert, refuse_experts
from enginix.checkpoint.rank_modules import LinearModule, MatrixSlice
from enginix.checkpoint.source_tensors import FLOATS, SourceTensors, cut_slice, cut_vector
from enginix.model import TensorInfo

if TYPE_CHECKING:
    from enginix.checkpoint.numbers import Array, Bytes8


def pack_floats(values: Sequence[float]) -> KnownBytes:
    """Pack float32 values that are known when the conversion is planned."""
    return KnownBytes(struct.pack(f"<{len(values)}f", *values))


def pack_largest(linear: LinearModule, source: SourceTensors, leaf: str) -> tuple[BytePart, ...]:
    """Pack the largest scale of the matrices that become one."""
    return (pack_floats([max(source.scale(module, leaf) for module in linear.modules())]),)


def _make_rescaler(scale: float, target: float) -> RowTransform | None:
    """Return the transformation from ``scale`` to ``target``; None if they are equal."""
    if scale == target:
        return None

    def apply(rows: Bytes8, into: Bytes8) -> None:
        from enginix.checkpoint.numbers import rescale_fp8

        rescale_fp8(rows, scale, target, into)

    return RowTransform(apply, lambda width: width)


class Fp8:
    """One float32 scale a matrix; matrices that are merged take the largest of their scales."""

    def spec(self, linear: LinearModule, config: CheckpointConfig) -> Spec:
        return {
            "weight": ("F8_E4M3", linear.shape(linear.out, linear.inp)),
            "weights_scaling_factor": ("F32", linear.shape(1)),
            "activation_scaling_factor": ("F32", (1,)),
        }

    def parts(
        self, linear: LinearModule, config: CheckpointConfig, source: SourceTensors
    ) -> dict[str, tuple[BytePart, ...]]:
        parts: list[BytePart] = []
        scales: list[float] = []
        for group in linear.groups:
            scale_by_module = {s.module: source.scale(s.module, "weight_scale") for s in group}
            largest = max(scale_by_module.values())
            scales.append(largest)
            for piece in group:
                info = source.tensor(piece.module, "weight", ("F8_E4M3",), (piece.out, piece.inp))
                parts.append(cut_slice(info, piece, _make_rescaler(scale_by_module[piece.module], largest)))
        return {
            "weight": tuple(parts),
            "weights_scaling_factor": (pack_floats(scales),),
            "activation_scaling_factor": pack_largest(linear, source, "input_scale"),
        }

    def dequantize(self, tensors: Mapping[str, Array], linear: LinearModule) -> Dequantized:
        return _dequantize_codes(tensors["weight"], per_expert(tensors["weights_scaling_factor"], linear))


class Fp8PerChannel:
    """One float32 scale an output row; activations are scaled token by token when the engine runs.

    A model that is not quantized is quantized here: a row's scale is its largest magnitude over 448, at
    least 1 / (448 * 512), computed on the columns of the rank, as TensorRT-LLM does on loading.
    """

    def spec(self, linear: LinearModule, config: CheckpointConfig) -> Spec:
        refuse_experts(linear, "FP8_PER_CHANNEL_PER_TOKEN")
        return {
            "weight": ("F8_E4M3", (linear.out, linear.inp)),
            "per_channel_scale": ("F32", (linear.out,)),
        }

    def parts(
        self, linear: LinearModule, config: CheckpointConfig, source: SourceTensors
    ) -> dict[str, tuple[BytePart, ...]]:
        weight: list[BytePart] = []
        scale: list[BytePart] = []
        for piece in linear.groups[0]:
            if source.quantized(piece.module):
                info = source.tensor(piece.module, "weight", ("F8_E4M3",), (piece.out, piece.inp))
                weight.append(cut_slice(info, piece))
                scales = source.tensor(piece.module, "weight_scale", ("F32",), (piece.out,))
                scale.append(cut_vector(scales, piece.rows))
            else:
                info = source.tensor(piece.module, "weight", FLOATS, (piece.out, piece.inp))
                weight.append(cut_slice(info, piece, _make_row_quantizer(info, piece, "weight")))
                scale.append(cut_slice(info, piece, _make_row_quantizer(info, piece, "scale")))
        return {"weight": tuple(weight), "per_channel_scale": tuple(scale)}

    def dequantize(self, tensors: Mapping[str, Array], linear: LinearModule) -> Dequantized:
        return _dequantize_codes(tensors["weight"], tensors["per_channel_scale"][:, None])


def _dequantize_codes(weight: Array, scale: Array) -> Dequantized:
    from enginix.checkpoint.numbers import list_fp8_steps, list_fp8_values

    codes = weight.view("uint8")
    return list_fp8_values()[codes] * scale, list_fp8_steps()[codes] * scale


def _make_row_quantizer(info: TensorInfo, piece: MatrixSlice, what: str) -> RowTransform:
    def apply(rows: Bytes8, into: Bytes8) -> None:
        import numpy as np

        from enginix.checkpoint.numbers import quantize_fp8_rows
        from enginix.model.mapped_tensors import numpy_dtype

        values = np.ascontiguousarray(rows).view(numpy_dtype(info.dtype))
        codes, scale = quantize_fp8_rows(values.reshape(len(rows), piece.width), info.dtype)
        np.copyto(into, (codes if what == "weight" else scale).reshape(-1).view(np.uint8))

    return RowTransform(apply, lambda width: width // info.itemsize if what == "weight" else 4)
