"""What every number format provides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from enginix.checkpoint.config import CheckpointConfig
from enginix.checkpoint.layout import Linear
from enginix.checkpoint.parts import Part
from enginix.checkpoint.source import Source
from enginix.errors import ModelError

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

Spec = dict[str, tuple[str, tuple[int, ...]]]  # tensor's last name → safetensors dtype, shape on the rank
Dequantized = tuple["Array", "Array"]  # float32 values, and the format's step (gap to a neighbour) at each


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

    def dequantize(self, tensors: Mapping[str, Array], linear: Linear) -> Dequantized:
        """float32 [experts,] out, in: what the stored matrix means, pre-quant scales included."""


def no_experts(linear: Linear, what: str) -> None:
    """Refuses stacked experts in a format that no TensorRT-LLM MoE layer is known to load."""
    if linear.stacked:
        raise ModelError(
            f"{what} is for dense matrices; TensorRT-LLM's loader is not known to take experts in it",
            where=linear.name,
            fix="quantize this model to FP8 or NVFP4",
        )


def per_expert(scale: Array, linear: Linear) -> Array:
    """A scale an expert, shaped to broadcast over out and in; a dense matrix's scale as it is."""
    return scale.reshape(-1, 1, 1) if linear.stacked else scale
