"""Integer weights with pre-quant scales, in ModelOpt's form: INT4 AWQ, W4A8 AWQ, INT8 SmoothQuant.

TensorRT-LLM's own conversion of such models fails, or its loader refuses the result; the loader reads
ModelOpt's form (golden data, ``load-*`` cases). It needs a pre-quant scale on every matrix; if ModelOpt
folded one into the norm before it, ones are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from enginix.checkpoint.byte_sources import BytePart, KnownBytes
from enginix.checkpoint.config import DTYPES, CheckpointConfig
from enginix.checkpoint.formats.base import Dequantized, Spec, refuse_experts
from enginix.checkpoint.formats.fp8 import pack_largest
from enginix.checkpoint.formats.plain import make_caster
from enginix.checkpoint.rank_modules import LinearModule
from enginix.checkpoint.source_tensors import FLOATS, SourceTensors, cut_pieces, cut_row_scales, cut_vector
from enginix.errors import ModelError, UsageError

if TYPE_CHECKING:
    from enginix.checkpoint.numbers import Array

_ONE = {"F32": b"\x00\x00\x80\x3f", "BF16": b"\x80\x3f", "F16": b"\x00\x3c"}


def make_prequant_part(linear: LinearModule, config: CheckpointConfig, source: SourceTensors) -> BytePart:
    """Return the pre-quant scale of merged matrices: the shared one, or ones."""
    dtype = DTYPES[config.dtype]
    piece = linear.groups[0][0]
    modules = linear.modules()
    scaled_modules = [m for m in modules if source.has(m, "pre_quant_scale")]
    if not scaled_modules:
        return KnownBytes(_ONE[dtype] * linear.inp)
    infos = [source.tensor(m, "pre_quant_scale", FLOATS, (piece.inp,)) for m in modules]
    values = [source.reader.array(info) for info in infos]
    if any(v.tobytes() != values[0].tobytes() for v in values):
        raise ModelError(
            f"{', '.join(modules)} become one matrix, but their pre_quant_scale differ",
            where=str(source.weights.directory),
            fix="export again with ModelOpt, which gives merged matrices one pre-quant scale",
        )
    if not (values[0].astype("float32") > 0).all():
        raise ModelError(
            f"scale {infos[0].name!r} is not positive everywhere",
            where=str(infos[0].path),
            fix="quantize the model again",
        )
    return cut_vector(infos[0], piece.cols, make_caster(infos[0], dtype))


class Int4Awq:
    """int4, two output rows in a byte (even row low), a float32 scale each ``group_size`` columns.

    Args:
        activations: with 8-bit activations (``W4A8_AWQ``).
    """

    def __init__(self, *, activations: bool) -> None:
        self.activations = activations
        self.name = "W4A8_AWQ" if activations else "W4A16_AWQ"

    def spec(self, linear: LinearModule, config: CheckpointConfig) -> Spec:
        refuse_experts(linear, self.name)
        group = config.quantization.group_size
        if linear.inp % group or any(r % 2 for s in linear.groups[0] for r in s.rows):
            raise UsageError(
                f"{linear.out} x {linear.inp} a rank: {self.name} needs an even number of rows from "
                f"each matrix and columns in groups of {group}",
                where=linear.name,
                fix="a smaller --tensor-parallel, or quantize with a smaller group",
            )
        spec: Spec = {
            "weight": ("I8", (linear.out // 2, linear.inp)),
            "weights_scaling_factor": ("F32", (linear.out, linear.inp // group)),
            "prequant_scaling_factor": (DTYPES[config.dtype], (linear.inp,)),
        }
        if self.activations:
            spec["weights_scaling_factor_2"] = ("F32", (1,))
            spec["activation_scaling_factor"] = ("F32", (1,))
        return spec

    def parts(
        self, linear: LinearModule, config: CheckpointConfig, source: SourceTensors
    ) -> dict[str, tuple[BytePart, ...]]:
        group = config.quantization.group_size
        parts: dict[str, tuple[BytePart, ...]] = {
            "weight": cut_pieces(linear, source, "weight", ("U8", "I8"), rows_each=2),
            "weights_scaling_factor": cut_pieces(linear, source, "weight_scale", ("F32",), elements=group),
            "prequant_scaling_factor": (make_prequant_part(linear, config, source),),
        }
        if self.activations:
            # The loader divides the group scales by the second scale and multiplies the product back,
            # so the largest of the merged matrices serves all of them.
            parts["weights_scaling_factor_2"] = pack_largest(linear, source, "weight_scale_2")
            parts["activation_scaling_factor"] = pack_largest(linear, source, "input_scale")
        return parts

    def dequantize(self, tensors: Mapping[str, Array], linear: LinearModule) -> Dequantized:
        import numpy as np

        from enginix.checkpoint.numbers import unpack_int4_rows

        scales = tensors["weights_scaling_factor"]
        element_scale = np.repeat(scales, linear.inp // scales.shape[1], axis=1)
        element_scale = element_scale * tensors["prequant_scaling_factor"].astype(np.float32)
        return unpack_int4_rows(tensors["weight"]) * element_scale, np.abs(element_scale)


class Int8SmoothQuant:
    """int8 with a float32 scale an output row, one for activations, and pre-quant scales."""

    def spec(self, linear: LinearModule, config: CheckpointConfig) -> Spec:
        refuse_experts(linear, "W8A8_SQ_PER_CHANNEL")
        return {
            "weight": ("I8", (linear.out, linear.inp)),
            "weights_scaling_factor": ("F32", (linear.out,)),
            "activation_scaling_factor": ("F32", (1,)),
            "prequant_scaling_factor": (DTYPES[config.dtype], (linear.inp,)),
        }

    def parts(
        self, linear: LinearModule, config: CheckpointConfig, source: SourceTensors
    ) -> dict[str, tuple[BytePart, ...]]:
        return {
            "weight": cut_pieces(linear, source, "weight", ("I8",)),
            "weights_scaling_factor": cut_row_scales(linear, source),
            "activation_scaling_factor": pack_largest(linear, source, "input_scale"),
            "prequant_scaling_factor": (make_prequant_part(linear, config, source),),
        }

    def dequantize(self, tensors: Mapping[str, Array], linear: LinearModule) -> Dequantized:
        import numpy as np

        element_scale = tensors["weights_scaling_factor"][:, None] * tensors[
            "prequant_scaling_factor"
        ].astype(np.float32)
        return tensors["weight"].astype(np.float32) * element_scale, np.abs(element_scale)
