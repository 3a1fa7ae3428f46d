"""Linear layers by number format: the one seam where quantized formats come in.

A format is a function from a layer's description and the checkpoint's tensors to an operation on activations.
A quantized format adds its tensors to ``layout.linear_tensors`` and its loader to ``FORMATS``; nothing else
changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from enginix.errors import CheckpointError
from enginix.reference.config import CheckpointConfig
from enginix.reference.layout import LinearSpec
from enginix.reference.weights import Weights


class Linear(Protocol):
    """An operation y = x Wᵀ + b."""

    def __call__(self, x: torch.Tensor, expert: int | None = None) -> torch.Tensor:
        """[N, columns] → [N, rows] in the dtype of x; ``expert`` picks one of a stack."""
        ...


class Plain:
    """Weights in a floating-point dtype, as they are."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: torch.Tensor, expert: int | None = None) -> torch.Tensor:
        weight = self.weight if expert is None else self.weight[expert]
        return torch.nn.functional.linear(x, weight, self.bias)


Placed = Callable[[str], torch.Tensor]


def _plain(linear: LinearSpec, get: Placed) -> Linear:
    return Plain(get(f"{linear.name}.weight"), get(f"{linear.name}.bias") if linear.bias else None)


FORMATS: dict[str | None, Callable[[LinearSpec, Placed], Linear]] = {None: _plain}


def refuse_unknown_format(config: CheckpointConfig, where: str) -> None:
    """Refuses what this version cannot execute, before a header is looked at.

    Raises:
        CheckpointError: the weights' or the KV cache's number format is not among those implemented.
    """
    quantization = config.quantization
    for what, algorithm, known in (
        ("weights", quantization.algorithm, [name or "unquantized" for name in FORMATS]),
        ("KV cache", quantization.kv_cache, ["unquantized"]),
    ):
        if algorithm is not None and algorithm not in known:
            raise CheckpointError(
                f"{what} in {algorithm}: the reference executor of this version runs {', '.join(known)} only",
                where=where,
                fix="convert without quantization, or build an engine of another kind",
            )


def load(linear: LinearSpec, weights: Weights, device: torch.device, dtype: torch.dtype) -> Linear:
    """The operation for ``linear``, its tensors placed on ``device`` in the compute ``dtype``."""

    def get(name: str) -> torch.Tensor:
        return weights.get(name).to(device, dtype)

    return FORMATS[weights.config.quantization.algorithm](linear, get)
