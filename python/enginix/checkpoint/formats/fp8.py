"""float8_e4m3fn: one scale a matrix (``FP8``), or one an output row (``FP8_PER_CHANNEL_PER_TOKEN``)."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from enginix.checkpoint.config import CheckpointConfig
from enginix.checkpoint.formats.base import Dequantized, Spec, no_experts, per_expert
from enginix.checkpoint.layout import Linear, Slice
from enginix.checkpoint.parts import Bytes, Part, Transform
from enginix.checkpoint.source import FLOATS, Source, cut, vector
from enginix.model import TensorInfo

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]


def floats(values: Sequence[float]) -> Bytes:
    """float32 values that are known when the conversion is planned."""
    return Bytes(struct.pack(f"<{len(values)}f", *values))


def _rescaler(scale: float, target: float) -> Transform | None:
    """From bytes with ``scale`` to bytes with ``target``; None where they are the same."""
    if scale == target:
        return None

    def apply(rows: npt.NDArray[np.uint8], into: npt.NDArray[np.uint8]) -> None:
        from enginix.checkpoint.numbers import fp8_rescale

        fp8_rescale(rows, scale, target, into)

    return Transform(apply, lambda width: width)


class Fp8:
    """One float32 scale a matrix; matrices that are merged take the largest of their scales."""

    def spec(self, linear: Linear, config: CheckpointConfig) -> Spec:
        return {
            "weight": ("F8_E4M3", linear.shape(linear.out, linear.inp)),
            "weights_scaling_factor": ("F32", linear.shape(1)),
            "activation_scaling_factor": ("F32", (1,)),
        }

    def parts(self, linear: Linear, config: CheckpointConfig, source: Source) -> dict[str, tuple[Part, ...]]:
        parts: list[Part] = []
        scales: list[float] = []
        for group in linear.groups:
            own = {s.module: source.scale(s.module, "weight_scale") for s in group}
            top = max(own.values())
            scales.append(top)
            for piece in group:
                info = source.tensor(piece.module, "weight", ("F8_E4M3",), (piece.out, piece.inp))
                parts.append(cut(info, piece, _rescaler(own[piece.module], top)))
        activation = max(source.scale(m, "input_scale") for m in linear.modules())
        return {
            "weight": tuple(parts),
            "weights_scaling_factor": (floats(scales),),
            "activation_scaling_factor": (floats([activation]),),
        }

    def dequantize(self, tensors: Mapping[str, Array], linear: Linear) -> Dequantized:
        from enginix.checkpoint.numbers import fp8_steps, fp8_values

        codes = tensors["weight"].view("uint8")
        scale = per_expert(tensors["weights_scaling_factor"], linear)
        return fp8_values()[codes] * scale, fp8_steps()[codes] * scale


class Fp8PerChannel:
    """One float32 scale an output row; activations are scaled token by token when the engine runs.

    A model that is not quantized is quantized here: a row's scale is its largest magnitude over 448, at
    least 1 / (448 * 512), computed on the columns of the rank, as TensorRT-LLM does on loading.
    """

    def spec(self, linear: Linear, config: CheckpointConfig) -> Spec:
        no_experts(linear, "FP8_PER_CHANNEL_PER_TOKEN")
        return {
            "weight": ("F8_E4M3", (linear.out, linear.inp)),
            "per_channel_scale": ("F32", (linear.out,)),
        }

    def parts(self, linear: Linear, config: CheckpointConfig, source: Source) -> dict[str, tuple[Part, ...]]:
        weight: list[Part] = []
        scale: list[Part] = []
        for piece in linear.groups[0]:
            if source.quantized(piece.module):
                info = source.tensor(piece.module, "weight", ("F8_E4M3",), (piece.out, piece.inp))
                weight.append(cut(info, piece))
                scales = source.tensor(piece.module, "weight_scale", ("F32",), (piece.out,))
                scale.append(vector(scales, piece.rows))
            else:
                info = source.tensor(piece.module, "weight", FLOATS, (piece.out, piece.inp))
                weight.append(cut(info, piece, _row_quantizer(info, piece, "weight")))
                scale.append(cut(info, piece, _row_quantizer(info, piece, "scale")))
        return {"weight": tuple(weight), "per_channel_scale": tuple(scale)}

    def dequantize(self, tensors: Mapping[str, Array], linear: Linear) -> Dequantized:
        from enginix.checkpoint.numbers import fp8_steps, fp8_values

        codes = tensors["weight"].view("uint8")
        scale = tensors["per_channel_scale"][:, None]
        return fp8_values()[codes] * scale, fp8_steps()[codes] * scale


def _row_quantizer(info: TensorInfo, piece: Slice, what: str) -> Transform:
    def apply(rows: npt.NDArray[np.uint8], into: npt.NDArray[np.uint8]) -> None:
        import numpy as np

        from enginix.checkpoint.numbers import fp8_quantize_rows, numpy_dtype

        values = np.ascontiguousarray(rows).view(numpy_dtype(info.dtype))
        codes, scale = fp8_quantize_rows(values.reshape(len(rows), piece.width), info.dtype)
        np.copyto(into, (codes if what == "weight" else scale).reshape(-1).view(np.uint8))

    return Transform(apply, lambda width: width // info.itemsize if what == "weight" else 4)
