"""NVFP4: float4_e2m1 pairs in bytes, a float8_e4m3fn scale each 16 columns, a float32 scale a matrix.

TensorRT-LLM reads two forms. Its own holds all tensors of the kernels, including the block scales in tiled
order; tiles are 128 rows by 4 scales and must fit exactly. ModelOpt's holds the plain scales, from which the
loader computes the other tensors, with padding if tiles do not fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from enginix.checkpoint.byte_sources import BytePart, GeneratedBytes, SourceFileReader
from enginix.checkpoint.config import CheckpointConfig
from enginix.checkpoint.formats.base import Dequantized, Spec, per_expert, refuse_experts
from enginix.checkpoint.formats.fp8 import pack_floats, pack_largest
from enginix.checkpoint.rank_modules import LinearModule, MatrixSlice
from enginix.checkpoint.source_tensors import SourceTensors, cut_pieces
from enginix.errors import ModelError, UsageError

if TYPE_CHECKING:
    from enginix.checkpoint.numbers import Array

BLOCK = 16  # columns that share a scale
TILE_ROWS, TILE_SCALES = 128, 4


def fits_tiles(linear: LinearModule) -> bool:
    """Return whether the block scales are whole tiles, so that TensorRT-LLM's own form can hold them."""
    return linear.out % TILE_ROWS == 0 and linear.inp // BLOCK % TILE_SCALES == 0


def find_unaligned(
    linears: Iterable[LinearModule], algorithms: Mapping[str, str | None]
) -> LinearModule | None:
    """Return a matrix that needs ModelOpt's form; None where all can be in TensorRT-LLM's own.

    Args:
        algorithms: of each matrix, by its name.
    """
    own = [linear for linear in linears if algorithms.get(linear.name) == "NVFP4"]
    is_any_stacked = any(linear.stacked for linear in own)  # ModelOpt's form has no experts
    return None if is_any_stacked else next((linear for linear in own if not fits_tiles(linear)), None)


def _check_columns(linear: LinearModule) -> None:
    if linear.inp % BLOCK:
        raise UsageError(
            f"{linear.inp} input columns per rank are not a multiple of NVFP4's blocks of {BLOCK}",
            where=linear.name,
            fix="a smaller --tensor-parallel",
        )


def _read_global_scale(group: tuple[MatrixSlice, ...], source: SourceTensors) -> float:
    """Return the float32 scale of merged matrices, which they must share."""
    scale_by_module = {s.module: source.scale(s.module, "weight_scale_2") for s in group}
    if len(set(scale_by_module.values())) > 1:
        names, scales = ", ".join(scale_by_module), sorted(scale_by_module.values())
        raise ModelError(
            f"{names} become one matrix, but their weight_scale_2 differ ({scales})",
            where=str(source.weights.directory),
            fix="export again with ModelOpt, which gives merged matrices one scale",
        )
    return next(iter(scale_by_module.values()))


def _make_weight_parts(
    linear: LinearModule, source: SourceTensors
) -> tuple[tuple[BytePart, ...], tuple[BytePart, ...]]:
    """Return packed weights and block scales in ModelOpt's form."""
    weight = cut_pieces(linear, source, "weight", ("U8",), elements=2)
    return weight, cut_pieces(linear, source, "weight_scale", ("F8_E4M3",), elements=BLOCK)


def _make_interleaved_part(linear: LinearModule, source: SourceTensors) -> BytePart:
    """Return block scales in tiles of 128 rows by 4: (row % 32) * 16 + row % 128 // 32 * 4 + column % 4."""
    cuts = cut_pieces(linear, source, "weight_scale", ("F8_E4M3",), elements=BLOCK)
    width = linear.inp // BLOCK

    def make(reader: SourceFileReader) -> Iterator[bytes]:
        from enginix.checkpoint.numbers import interleave_tiles

        pending = b""
        for piece in cuts:
            for block in piece.blocks(reader):
                pending += block
                whole = len(pending) // (TILE_ROWS * width) * TILE_ROWS * width
                yield interleave_tiles(pending[:whole], width)
                pending = pending[whole:]

    return GeneratedBytes(len(linear.groups) * linear.out * width, make)


class Nvfp4:
    """TensorRT-LLM's own form."""

    def spec(self, linear: LinearModule, config: CheckpointConfig) -> Spec:
        _check_columns(linear)
        if not fits_tiles(linear):
            raise UsageError(
                f"{linear.out} x {linear.inp} per rank is not a whole number of NVFP4 scale tiles "
                f"({TILE_ROWS} rows by {TILE_SCALES * BLOCK} columns)",
                where=linear.name,
                fix="a smaller --tensor-parallel"
                + (
                    "" if linear.stacked else ", or --nvfp4-form modelopt, which TensorRT-LLM pads on loading"
                ),
            )
        blocks = linear.shape(linear.out, linear.inp // BLOCK)
        spec: Spec = {
            "weight": ("U8", linear.shape(linear.out, linear.inp // 2)),
            "weights_block_scaling_factor": ("F8_E4M3", blocks),
            "weights_block_scaling_factor_interleaved": ("F8_E4M3", blocks),
            "activation_global_scaling_factor": ("F32", (1,)),
            "alpha": ("F32", (len(linear.groups),)),
        }
        if not linear.stacked:
            spec["weights_global_scaling_factor"] = ("F32", (1,))
        return spec

    def parts(
        self, linear: LinearModule, config: CheckpointConfig, source: SourceTensors
    ) -> dict[str, tuple[BytePart, ...]]:
        import numpy as np

        weight, blocks = _make_weight_parts(linear, source)
        scales = [_read_global_scale(group, source) for group in linear.groups]
        activation = max(source.scale(m, "input_scale") for m in linear.modules())
        alpha = [float(np.float32(s) * np.float32(activation)) for s in scales]
        parts: dict[str, tuple[BytePart, ...]] = {
            "weight": weight,
            "weights_block_scaling_factor": blocks,
            "weights_block_scaling_factor_interleaved": (_make_interleaved_part(linear, source),),
            "activation_global_scaling_factor": (pack_floats([activation]),),
            "alpha": (pack_floats(alpha),),
        }
        if not linear.stacked:
            parts["weights_global_scaling_factor"] = (pack_floats(scales),)
        return parts

    def dequantize(self, tensors: Mapping[str, Array], linear: LinearModule) -> Dequantized:
        # Experts keep no global scale of their own: alpha is that scale times the activation's.
        scale = tensors.get("weights_global_scaling_factor")
        if scale is None:
            scale = tensors["alpha"] / tensors["activation_global_scaling_factor"]
        return dequantize_nvfp4(
            tensors["weight"], tensors["weights_block_scaling_factor"], per_expert(scale, linear)
        )


class Nvfp4ModelOpt:
    """ModelOpt's form; defined for dense matrices only (the loader unpacks two dimensions)."""

    def spec(self, linear: LinearModule, config: CheckpointConfig) -> Spec:
        refuse_experts(linear, "NVFP4 in ModelOpt's form")
        _check_columns(linear)
        return {
            "weight": ("U8", (linear.out, linear.inp // 2)),
            "weights_scaling_factor": ("F8_E4M3", (linear.out, linear.inp // BLOCK)),
            "weights_scaling_factor_2": ("F32", ()),
            "activation_scaling_factor": ("F32", ()),
        }

    def parts(
        self, linear: LinearModule, config: CheckpointConfig, source: SourceTensors
    ) -> dict[str, tuple[BytePart, ...]]:
        weight, blocks = _make_weight_parts(linear, source)
        return {
            "weight": weight,
            "weights_scaling_factor": blocks,
            "weights_scaling_factor_2": (pack_floats([_read_global_scale(linear.groups[0], source)]),),
            "activation_scaling_factor": pack_largest(linear, source, "input_scale"),
        }

    def dequantize(self, tensors: Mapping[str, Array], linear: LinearModule) -> Dequantized:
        return dequantize_nvfp4(
            tensors["weight"], tensors["weights_scaling_factor"], tensors["weights_scaling_factor_2"]
        )


def dequantize_nvfp4(packed: Array, blocks: Array, scale: Array) -> Dequantized:
    """Return float32 values of packed pairs (low nibble first), and the widest gap beside each.

    Args:
        packed: uint8 [..., out, in / 2].
        blocks: float8_e4m3fn [..., out, in / 16].
        scale: float32, broadcast over out and in.
    """
    import numpy as np

    from enginix.checkpoint.numbers import FP4_STEPS, FP4_VALUES, list_fp8_values

    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    element_scale = np.repeat(list_fp8_values()[blocks.view("uint8")], BLOCK, axis=-1) * scale
    return FP4_VALUES[codes] * element_scale, FP4_STEPS[codes] * element_scale
