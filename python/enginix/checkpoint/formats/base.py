"""What every number format provides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from enginix.checkpoint.config import CheckpointConfig
from enginix.checkpoint.layout import Linear
from enginix.checkpoint.parts import Part, Zeros
from enginix.checkpoint.source import FLOATS, Source, cut

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

Spec = dict[str, tuple[str, tuple[int, ...]]]  # tensor's last name → safetensors dtype, shape on the rank


class Format(Protocol):
    """A number format of one matrix."""

    def spec(self, linear: Linear, config: CheckpointConfig) -> Spec:
        """The tensors that the loader requires, without bias.

        Raises:
            EnginixError: the format cannot hold a matrix of this shape, or this kind of matrix.
        """

    def parts(self, linear: Linear, config: CheckpointConfig, source: Source) -> dict[str, tuple[Part, ...]]:
        """For each tensor of ``spec``, what its bytes are made of.

        Raises:
            ModelError: source tensors missing, misshapen, or not expressible in this format.
        """

    def dequantize(self, tensors: Mapping[str, Array], linear: Linear) -> Array:
        """float32 [experts,] out, in: what the stored matrix means, pre-quant scales included."""


def bias_parts(linear: Linear, dtype: str, source: Source) -> tuple[Part, ...]:
    """The bias of a dense matrix: cut with its rows, whole where its columns are cut."""
    from enginix.checkpoint.formats.plain import caster

    parts: list[Part] = []
    for piece in linear.groups[0]:
        info = source.tensor(piece.module, "bias", FLOATS, (piece.out,))
        column = type(piece)(piece.module, piece.out, 1, piece.rows, (0, 1))
        parts.append(cut(info, column, caster(info, dtype)))
        if piece.pad:
            parts.append(Zeros(piece.pad * {"F32": 4}.get(dtype, 2)))
    return tuple(parts)
