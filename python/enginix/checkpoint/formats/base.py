"""What every number format provides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from enginix.checkpoint.byte_sources import BytePart
from enginix.checkpoint.config import CheckpointConfig
from enginix.checkpoint.layout import LinearModule
from enginix.checkpoint.source_tensors import SourceTensors
from enginix.errors import ModelError

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

Spec = dict[str, tuple[str, tuple[int, ...]]]  # tensor's last name → safetensors dtype, shape on the rank
Dequantized = tuple["Array", "Array"]  # float32 values, and the format's step (gap to a neighbour) at each


class NumberFormat(Protocol):
    """A number format of one matrix."""

    def spec(self, linear: LinearModule, config: CheckpointConfig) -> Spec:
        """The tensors that the loader requires, without bias.

        Raises:
            EnginixError: the format cannot hold a matrix of this shape, or this kind of matrix.
        """

    def parts(
        self, linear: LinearModule, config: CheckpointConfig, source: SourceTensors
    ) -> dict[str, tuple[BytePart, ...]]:
        """For each tensor of ``spec``, what its bytes are made of.

        Raises:
            ModelError: source tensors missing, misshapen, or not expressible in this format.
        """

    def dequantize(self, tensors: Mapping[str, Array], linear: LinearModule) -> Dequantized:
        """float32 [experts,] out, in: what the stored matrix means, pre-quant scales included."""


def refuse_experts(linear: LinearModule, what: str) -> None:
    """Refuses stacked experts in a format that no TensorRT-LLM MoE layer is known to load."""
    if linear.stacked:
        raise ModelError(
            f"{what} is for dense matrices; TensorRT-LLM's loader is not known to take experts in it",
            where=linear.name,
            fix="quantize this model to FP8 or NVFP4",
        )


def per_expert(scale: Array, linear: LinearModule) -> Array:
    """A scale an expert, shaped to broadcast over out and in; a dense matrix's scale as it is."""
    return scale.reshape(-1, 1, 1) if linear.stacked else scale
