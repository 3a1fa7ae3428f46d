"""Merge rank files into whole tensors, one tensor at a time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError

from enginix.errors import CheckpointError
from enginix.reference import layout
from enginix.reference.executor_config import ExecutorConfig
from enginix.reference.layout import RankCut, TensorSpec
from enginix.reference.quantization import REBUILD


def _is_finite(part: torch.Tensor) -> bool:
    if part.dtype is torch.float8_e4m3fn:  # no infinity, and NaN is all ones; torch has no isfinite for it
        return not bool(((part.view(torch.uint8) & 0x7F) == 0x7F).any())
    return bool(torch.isfinite(part).all())


def _merge_halves(parts: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    """Regroup the ranks' [first; second] halves along ``dim`` into one whole [first; second]."""
    split = [part.chunk(2, dim) for part in parts]
    return torch.cat([first for first, _ in split] + [second for _, second in split], dim)


def _merge_qkv(config: ExecutorConfig, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    tp, size = config.mapping.tp, config.head_size
    local_q = config.heads // tp * size
    local_kv = max(1, config.kv_heads // tp) * size
    q, k, v = zip(*(torch.split(part, [local_q, local_kv, local_kv]) for part in parts), strict=True)
    # With fewer key-value heads than ranks, consecutive ranks hold copies of the same head.
    repeat = max(1, tp // config.kv_heads)
    for heads in (k, v):
        for rank in range(tp):
            if not torch.equal(heads[rank], heads[rank - rank % repeat]):
                raise CheckpointError(
                    f"ranks {rank - rank % repeat} and {rank} differ in a shared key-value head"
                )
    return torch.cat([*q, *k[::repeat], *v[::repeat]])


def merge_parts(config: ExecutorConfig, spec: TensorSpec, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the whole tensor from the parts of the tensor-parallel ranks, in rank order.

    Raises:
        CheckpointError: copies that should be equal are not.
    """
    mapping = config.mapping
    match spec.cut:
        case RankCut.WHOLE | RankCut.RANK:
            for rank, part in enumerate(parts[1:], 1):
                if not torch.equal(part, parts[0]):
                    raise CheckpointError(f"ranks 0 and {rank} differ in a tensor that they share")
            return parts[0]
        case RankCut.FIRST:
            for rank, part in enumerate(parts[1:], 1):
                if bool(part.any()):
                    raise CheckpointError(f"is not zeros on rank {rank}, and would be added twice")
            return parts[0]
        case RankCut.ROWS:
            return torch.cat(list(parts))
        case RankCut.COLUMNS:
            return torch.cat(list(parts), 1)
        case RankCut.QKV:
            return _merge_qkv(config, parts)
        case RankCut.HALVES:
            return _merge_halves(parts, 0)
        case RankCut.VOCABULARY:
            return torch.cat(list(parts))[: spec.shape[0]]
        case RankCut.EXPERT_HALVES | RankCut.EXPERT_COLUMNS:
            # Neighbouring tensor-parallel ranks hold different experts; every ep-th one more of the same.
            experts = []
            for ep_rank in range(mapping.ep):
                same = parts[ep_rank :: mapping.ep]
                experts.append(
                    _merge_halves(same, 1) if spec.cut is RankCut.EXPERT_HALVES else torch.cat(list(same), 2)
                )
            return torch.cat(experts)


class MergedWeights:
    """The whole tensors of a checkpoint by name; a context manager that holds the rank files open.

    Raises:
        CheckpointError: the files do not match ``config`` (:func:`layout.check_rank_files`).
    """

    def __init__(self, checkpoint: Path, config: ExecutorConfig) -> None:
        layout.check_rank_files(checkpoint, config)
        self.config, self.checkpoint = config, checkpoint
        self.specs = {spec.name: spec for spec in layout.iterate_tensor_specs(config)}
        self._stack = ExitStack()
        self._ranks: list[Any] = [
            layout.open_rank(self._stack, checkpoint, rank, "pt") for rank in range(config.world_size)
        ]

    @property
    def parameters(self) -> int:
        """Return the number of elements of all whole tensors."""
        return sum(prod(spec.shape) for spec in self.specs.values())

    def __enter__(self) -> MergedWeights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def parts(self, name: str) -> list[torch.Tensor]:
        """Return a tensor's part of each tensor-parallel rank, in rank order, on the CPU.

        Raises:
            CheckpointError: unreadable, or not finite.
        """
        spec, tp = self.specs[name], self.config.mapping.tp
        first = layout.pipeline_rank(self.config, spec) * tp
        stored = layout.name_in_file(self.config, spec)
        try:
            parts = [self._ranks[rank].get_tensor(stored) for rank in range(first, first + tp)]
        except (SafetensorError, OSError) as e:
            raise CheckpointError(f"unreadable: {e}", where=self.where(name), fix=REBUILD) from e
        # Before merging: NaN differs from itself, and copies are compared there.
        if not all(map(_is_finite, parts)):
            raise CheckpointError("holds NaN or infinity", where=self.where(name), fix=REBUILD)
        return parts

    def get(self, name: str) -> torch.Tensor:
        """Return one whole tensor, in its stored dtype, on the CPU.

        Raises:
            CheckpointError: unreadable, not finite, or copies on different ranks disagree.
        """
        parts = self.parts(name)
        return self.merge(name, self.specs[name], parts)

    def merge(self, name: str, spec: TensorSpec, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Merge parts as :func:`merge_parts` does; errors name the tensor."""
        try:
            return merge_parts(self.config, spec, parts)
        except CheckpointError as e:
            raise CheckpointError(e.what, where=self.where(name), fix=REBUILD) from e

    def where(self, name: str) -> str:
        """Return checkpoint and tensor name, for errors."""
        return f"{self.checkpoint}: {name}"
