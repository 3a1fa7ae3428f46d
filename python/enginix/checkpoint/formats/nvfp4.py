"""NVFP4: float4_e2m1 pairs in bytes, a float8_e4m3fn scale each 16 columns, a float32 scale a matrix.

TensorRT-LLM reads two forms. Its own holds everything that the kernels want, the block scales in their
tiled order, too; tiles are 128 rows by 4 scales and must fit exactly. ModelOpt's holds the plain
scales, from which the loader makes the rest, padding where tiles do not fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from enginix.checkpoint.config import CheckpointConfig
from enginix.checkpoint.formats.base import Dequantized, Spec, no_experts, per_expert
from enginix.checkpoint.formats.fp8 import floats
from enginix.checkpoint.layout import Linear, Slice
from enginix.checkpoint.parts import Generated, Part, Reader
from enginix.checkpoint.source import Source, cut
from enginix.errors import ModelError, UsageError

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

BLOCK = 16  # columns that share a scale
TILE_ROWS, TILE_SCALES = 128, 4


def fits_tiles(linear: Linear) -> bool:
    """Whether the block scales are whole tiles, so that TensorRT-LLM's own form can hold them."""
    return linear.out % TILE_ROWS == 0 and linear.inp // BLOCK % TILE_SCALES == 0


def _check_columns(linear: Linear) -> None:
    if linear.inp % BLOCK:
        raise UsageError(
            f"{linear.inp} input columns a rank are no multiple of NVFP4's blocks of {BLOCK}",
            where=linear.name,
            fix="a smaller --tensor-parallel",
        )


def _global_scale(group: tuple[Slice, ...], source: Source) -> float:
    """The float32 scale of matrices that are merged; they share it, or the merge would be wrong."""
    own = {s.module: source.scale(s.module, "weight_scale_2") for s in group}
    if len(set(own.values())) > 1:
        names = ", ".join(own)
        raise ModelError(
            f"{names} become one matrix, but their weight_scale_2 differ ({sorted(own.values())})",
            where=str(source.weights.directory),
            fix="export again with ModelOpt, which gives merged matrices one scale",
        )
    return next(iter(own.values()))


def _weights(linear: Linear, source: Source) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """Packed weights and block scales, as ModelOpt has them."""
    weight: list[Part] = []
    blocks: list[Part] = []
    for piece in (s for group in linear.groups for s in group):
        packed = source.tensor(piece.module, "weight", ("U8",), (piece.out, piece.inp // 2))
        weight.append(cut(packed, piece, elements=2))
        scales = source.tensor(piece.module, "weight_scale", ("F8_E4M3",), (piece.out, piece.inp // BLOCK))
        blocks.append(cut(scales, piece, elements=BLOCK))
    return tuple(weight), tuple(blocks)


def _interleaved(linear: Linear, source: Source) -> Part:
    """Block scales in tiles of 128 rows by 4: at (row % 32) * 16 + row % 128 // 32 * 4 + column % 4."""
    parts = []
    for group in linear.groups:
        cuts = [
            cut(
                source.tensor(s.module, "weight_scale", ("F8_E4M3",), (s.out, s.inp // BLOCK)),
                s,
                elements=BLOCK,
            )
            for s in group
        ]
        parts.append(cuts)
    width = linear.inp // BLOCK

    def make(reader: Reader) -> Iterator[bytes]:
        from enginix.checkpoint.numbers import interleave_tiles

        for cuts in parts:
            rest = b""
            for piece in cuts:
                for block in piece.blocks(reader):
                    rest += block
                    whole = len(rest) // (TILE_ROWS * width) * TILE_ROWS * width
                    yield interleave_tiles(rest[:whole], width)
                    rest = rest[whole:]

    return Generated(len(linear.groups) * linear.out * width, make)


class Nvfp4:
    """TensorRT-LLM's own form."""

    def spec(self, linear: Linear, config: CheckpointConfig) -> Spec:
        _check_columns(linear)
        if not fits_tiles(linear):
            raise UsageError(
                f"{linear.out} x {linear.inp} a rank is no whole number of NVFP4 scale tiles "
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

    def parts(self, linear: Linear, config: CheckpointConfig, source: Source) -> dict[str, tuple[Part, ...]]:
        import numpy as np

        weight, blocks = _weights(linear, source)
        scales = [_global_scale(group, source) for group in linear.groups]
        activation = max(source.scale(m, "input_scale") for m in linear.modules())
        alpha = [float(np.float32(s) * np.float32(activation)) for s in scales]
        parts: dict[str, tuple[Part, ...]] = {
            "weight": weight,
            "weights_block_scaling_factor": blocks,
            "weights_block_scaling_factor_interleaved": (_interleaved(linear, source),),
            "activation_global_scaling_factor": (floats([activation]),),
            "alpha": (floats(alpha),),
        }
        if not linear.stacked:
            parts["weights_global_scaling_factor"] = (floats(scales),)
        return parts

    def dequantize(self, tensors: Mapping[str, Array], linear: Linear) -> Dequantized:
        # Experts keep no global scale of their own: alpha is that scale times the activation's.
        scale = tensors.get("weights_global_scaling_factor")
        if scale is None:
            scale = tensors["alpha"] / tensors["activation_global_scaling_factor"]
        return dequantize(
            tensors["weight"], tensors["weights_block_scaling_factor"], per_expert(scale, linear)
        )


class Nvfp4ModelOpt:
    """ModelOpt's form; defined for dense matrices only (the loader unpacks two dimensions)."""

    def spec(self, linear: Linear, config: CheckpointConfig) -> Spec:
        no_experts(linear, "NVFP4 in ModelOpt's form")
        _check_columns(linear)
        return {
            "weight": ("U8", (linear.out, linear.inp // 2)),
            "weights_scaling_factor": ("F8_E4M3", (linear.out, linear.inp // BLOCK)),
            "weights_scaling_factor_2": ("F32", ()),
            "activation_scaling_factor": ("F32", ()),
        }

    def parts(self, linear: Linear, config: CheckpointConfig, source: Source) -> dict[str, tuple[Part, ...]]:
        weight, blocks = _weights(linear, source)
        activation = max(source.scale(m, "input_scale") for m in linear.modules())
        return {
            "weight": weight,
            "weights_scaling_factor": blocks,
            "weights_scaling_factor_2": (floats([_global_scale(linear.groups[0], source)]),),
            "activation_scaling_factor": (floats([activation]),),
        }

    def dequantize(self, tensors: Mapping[str, Array], linear: Linear) -> Dequantized:
        return dequantize(
            tensors["weight"], tensors["weights_scaling_factor"], tensors["weights_scaling_factor_2"]
        )


def dequantize(packed: Array, blocks: Array, scale: Array) -> Dequantized:
    """float32 values of packed pairs (low nibble first), and the widest gap beside each.

    Args:
        packed: uint8 [..., out, in / 2].
        blocks: float8_e4m3fn [..., out, in / 16].
        scale: float32, broadcast over out and in.
    """
    import numpy as np

    from enginix.checkpoint.numbers import FP4_STEPS, FP4_VALUES, fp8_values

    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    each = np.repeat(fp8_values()[blocks.view("uint8")], BLOCK, axis=-1) * scale
    return FP4_VALUES[codes] * each, FP4_STEPS[codes] * each
