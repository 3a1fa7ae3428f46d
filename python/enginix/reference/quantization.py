"""The number format of each module: the ``quantization`` block and ``quant_cfg.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from enginix.errors import CheckpointError

MIXED = "MIXED_PRECISION"
# Modules that TensorRT-LLM leaves unquantized if a checkpoint has no list (QuantConfig's default patterns).
DEFAULT_EXCLUDE = (
    "*lm_head",
    "*router",
    "*vocab_embedding",
    "*position_embedding",
    "*block_embedding",
    "*shared_expert_gate",
)
REBUILD = "convert the model again: enginix convert MODEL -o DIR"


@dataclass(frozen=True)
class ExecutorQuantization:
    """The ``quantization`` block: algorithms by TensorRT-LLM's names, ``None`` for unquantized.

    Attributes:
        group_size: columns that share a scale, for AWQ.
        exclude: patterns of modules that stay unquantized; ``None`` means TensorRT-LLM's own.
        layers: module → (algorithm, group size), for ``MIXED_PRECISION``.
        own_nvfp4: NVFP4 tensors are in TensorRT-LLM's own form, not in ModelOpt's.
    """

    algorithm: str | None = None
    kv_cache: str | None = None
    group_size: int = 128
    exclude: tuple[str, ...] | None = None
    layers: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    own_nvfp4: bool = True

    def of(self, module: str) -> str | None:
        """Return the algorithm of a module, whose layer is numbered within its pipeline stage."""
        patterns = DEFAULT_EXCLUDE if self.exclude is None else self.exclude
        if any(fnmatchcase(module, pattern) for pattern in patterns):
            return None
        if self.algorithm == MIXED:
            return self.layers[module][0] if module in self.layers else None
        return self.algorithm

    def group(self, module: str) -> int:
        """Return the number of columns that share a scale in an AWQ module."""
        return self.layers[module][1] if module in self.layers else self.group_size

    @property
    def algorithms(self) -> frozenset[str]:
        """Return the algorithms of all modules."""
        if self.algorithm == MIXED:
            return frozenset(algorithm for algorithm, _ in self.layers.values())
        return frozenset([self.algorithm] if self.algorithm else [])


def parse_quantized_layers(raw: Any, where: str) -> dict[str, tuple[str, int]]:
    """Parse ``quantized_layers`` of ``quant_cfg.json``.

    Raises:
        CheckpointError: not an object of objects with ``quant_algo``, or an impossible group size.
    """
    rows = raw.get("quantized_layers") if isinstance(raw, dict) else None
    algorithms = {}
    for module, row in rows.items() if isinstance(rows, dict) else [("quantized_layers", None)]:
        algorithm = row.get("quant_algo") if isinstance(row, dict) else None
        group = row.get("group_size", 128) if isinstance(row, dict) else 0
        if not isinstance(algorithm, str) or type(group) is not int or group < 1:
            raise CheckpointError(f"{module} is {row!r}, not a number format", where=where, fix=REBUILD)
        algorithms[module] = (algorithm, group)
    return algorithms


def has_own_nvfp4_form(checkpoint: Path, world_size: int) -> bool:
    """Return whether NVFP4 tensors are in TensorRT-LLM's own form, according to the rank files' headers."""
    for rank in range(world_size):
        path = checkpoint / f"rank{rank}.safetensors"
        try:
            with safe_open(path, "numpy") as rank_file:
                for name in rank_file.keys():  # noqa: SIM118
                    if name.endswith(".weights_block_scaling_factor"):
                        return True
        except (SafetensorError, OSError):
            return True  # layout.check_rank_files says what is wrong with the file
    return False
