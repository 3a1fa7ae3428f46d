"""Measure the size of weights on disk, and bits for each, from safetensors headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from enginix.inspect.parameters import count_logical_elements
from enginix.model import TensorInfo, read_header

# NVFP4 checkpoints hold their scales twice, the second time in the order of the GPU's tensor cores.
COPIES = ("weights_block_scaling_factor_interleaved",)
BLOCKS = "weights_block_scaling_factor"
GROUPS = "weights_scaling_factor"


@dataclass(frozen=True)
class StoredWeights:
    """Weights of a Hugging Face model or a TensorRT-LLM checkpoint.

    Attributes:
        parameters: numbers stored; tied ones that are stored twice count twice.
        bits: on disk for one of them, scales included, over the whole model.
        matrix_bits: the same over the matrices of the layers; None without any.
    """

    parameters: int
    bits: float
    matrix_bits: float | None


def _is_packed(module: str, names: Mapping[str, TensorInfo]) -> bool:
    """Return whether a byte of a checkpoint's weight holds two: its scales are of blocks, or of groups."""
    groups = names.get(f"{module}.{GROUPS}")
    return f"{module}.{BLOCKS}" in names or (groups is not None and len(groups.shape) > 1)


def _count_logical_elements(tensor: TensorInfo, names: Mapping[str, TensorInfo], checkpoint: bool) -> int:
    if not checkpoint:
        return count_logical_elements(tensor, names)
    module, _, leaf = tensor.name.rpartition(".")
    if leaf not in ("weight", "bias"):
        return 0
    return prod(tensor.shape) * (2 if tensor.dtype in ("I8", "U8") and _is_packed(module, names) else 1)


def measure_stored_weights(directory: Path) -> StoredWeights | None:
    """Measure every ``*.safetensors`` of ``directory``; None if no file has weights.

    Raises:
        ModelError: a file is not a whole safetensors file.
    """
    parameters = size = matrices = matrix_size = 0
    for path in sorted(directory.glob("*.safetensors")):
        names = read_header(path).tensors
        checkpoint = any(name.startswith("transformer.") for name in names)
        modules = {
            name.removesuffix(".weight")
            for name, tensor in names.items()
            if name.endswith(".weight") and "layers." in name and len(tensor.shape) > 1
        }
        for name, tensor in names.items():
            module, _, leaf = name.rpartition(".")
            if leaf in COPIES:
                continue
            logical = _count_logical_elements(tensor, names, checkpoint)
            parameters, size = parameters + logical, size + tensor.nbytes
            if module in modules:
                matrices, matrix_size = matrices + logical, matrix_size + tensor.nbytes
    if not parameters:
        return None
    return StoredWeights(parameters, 8 * size / parameters, 8 * matrix_size / matrices if matrices else None)
