"""The interface of number formats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from enginix.checkpoint.byte_sources import BytePart
from enginix.checkpoint.config import CheckpointConfig
from enginix.checkpoint.rank_modules import LinearModule
from enginix.checkpoint.source_tensors import SourceTensors
from enginix.errors import ModelError

if TYPE_CHECKING:
    from enginix.checkpoint.numbers import Array

Spec = dict[str, tuple[str, tuple[int, ...]]]  # tensor's last name → safetensors dtype, shape on the rank
Dequantized = tuple["Array", "Array"]  # float32 values, and the format's step (gap to a neighbour) at each


class NumberFormat(Protocol):
    """A number format of one matrix."""

    def spec(self, linear: LinearModule, config: CheckpointConfig) -> Spec:
        """Return the tensors that the loader requires, without bias.

        Raises:
            EnginixError: the format cannot hold a matrix of this shape, or this kind of matrix.
        """

    def parts(
        self, linear: LinearModule, config: CheckpointConfig, source: SourceTensors
    ) -> dict[str, tuple[BytePart, ...]]:
        """Return the sources of the bytes of each tensor of ``spec``.

        Raises:
            ModelError: source tensors missing, misshapen, or not expressible in this format.
        """

    def dequantize(self, tensors: Mapping[str, Array], linear: LinearModule) -> Dequantized:
        """Return the stored matrix as float32 [experts,] out, in; pre-quant scales are included."""


def refuse_experts(linear: LinearModule, what: str) -> None:
    """Refuse stacked experts in a format that no TensorRT-LLM MoE layer is known to load."""
    if linear.stacked:
        raise ModelError(
            f"{what} is for dense matrices; TensorRT-LLM's loader is not known to take experts in it",
            where=linear.name,
            fix="quantize this model to FP8 or NVFP4",
        )


def per_expert(scale: Array, linear: LinearModule) -> Array:
    """Shape a scale of each expert to broadcast over out and in; return a dense matrix's scale unchanged."""
    return scale.reshape(-1, 1, 1) if linear.stacked else scale
