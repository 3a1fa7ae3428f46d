"""Bytes of every rank of a checkpoint that ``enginix convert`` would write, from configuration and headers.

The converter's own layout gives the tensors of a rank; no weight and no scale is read, so headers suffice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

from enginix.checkpoint import config as ckpt
from enginix.checkpoint.byte_sources import OutputTensor, SourceFileReader
from enginix.checkpoint.describe import describe_checkpoint_config
from enginix.checkpoint.formats import list_module_tensors
from enginix.checkpoint.formats.nvfp4 import find_unaligned
from enginix.checkpoint.layout import CheckpointLayout
from enginix.checkpoint.mapping import CheckpointMapping, check_parallelism
from enginix.checkpoint.resolve import resolve_quantization
from enginix.checkpoint.source_tensors import SourceTensors, name_source_tensors
from enginix.checkpoint.write import compute_file_layout
from enginix.memory_plan.arithmetic import ceil_div
from enginix.model import ModelConfig, ModelWeights
from enginix.model.safetensors import SAFETENSORS_DTYPES


@dataclass(frozen=True)
class RankSizes:
    """A checkpoint's sizes in bytes.

    Attributes:
        heaviest: the tensors of the heaviest rank.
        rank_files: each rank's file.
    """

    heaviest: int
    rank_files: tuple[int, ...]

    @property
    def files(self) -> int:
        """Return the bytes of all rank files together."""
        return sum(self.rank_files)


class CheckpointSizes:
    """Sizes of the checkpoints that a model can become.

    Args:
        dtype: of everything unquantized; None as ``enginix convert`` chooses.
    """

    def __init__(self, model: ModelConfig, weights: ModelWeights, dtype: str | None = None) -> None:
        self.model, self.weights = model, weights
        source_dtype = dtype or model.dtype or "float16"
        self.dtype = "float16" if dtype is None and source_dtype == "float32" else source_dtype
        self.ranks = lru_cache(maxsize=None)(self._ranks)

    def heaviest(self, tp: int, pp: int, quantization: str | None) -> int:
        """Return the bytes of the heaviest rank; an ``arithmetic.RankWeights``."""
        return self.ranks(tp, pp, quantization, None).heaviest

    def _ranks(self, tp: int, pp: int, quantization: str | None, kv_cache: str | None) -> RankSizes:
        """Return the sizes of one checkpoint.

        Args:
            quantization: a format that ModelOpt would have quantized it to; None for the model's own.
            kv_cache: ``FP8`` for a model that has no KV cache scales.

        Raises:
            UsageError: sizes that do not divide the model.
            ModelError: ``enginix convert`` would refuse the model's shapes.
        """
        experts = self.model.experts
        ep = 1 if experts is None or experts.width % tp == 0 else tp
        mapping = CheckpointMapping(tp, pp, ep)
        check_parallelism(self.model, mapping)
        layout, algorithms = self._layout(mapping, quantization, kv_cache)
        form = "modelopt" if find_unaligned(layout.linears(), algorithms) else "trtllm"
        heaviest, rank_files = 0, list[int]()
        for stage in range(pp):  # all ranks of a stage are of one size
            outputs = [
                OutputTensor(name, *row, ())
                for m in layout.rank(stage * tp)
                for name, row in list_module_tensors(m, layout.config, algorithms.get(m.name), form).items()
            ]
            heaviest = max(heaviest, sum(prod(o.shape) * SAFETENSORS_DTYPES[o.dtype] for o in outputs))
            rank_files += [compute_file_layout(outputs)[2]] * tp
        return RankSizes(heaviest, tuple(rank_files))

    def _layout(
        self, mapping: CheckpointMapping, quantization: str | None, kv_cache: str | None
    ) -> tuple[CheckpointLayout, dict[str, str | None]]:
        def lay_out(keys: dict[str, Any], quant_cfg: Mapping[str, Any] | None = None) -> CheckpointLayout:
            raw = describe_checkpoint_config(self.model, self.dtype, mapping, keys)
            return CheckpointLayout(ckpt.parse_checkpoint_config(raw, ckpt.FILE, quant_cfg))

        plain = lay_out({})
        if quantization is not None:
            every = {m.name: quantization for m in plain.linears() if m.quantizable}
            group_size = 16 if quantization == "NVFP4" else 128
            return lay_out({"quant_algo": quantization, "group_size": group_size}), dict(every)
        with SourceFileReader() as reader:
            source = SourceTensors(self.weights, reader, name_source_tensors(self.model))
            resolved = resolve_quantization(self.model.quantization, plain, source, kv_cache=kv_cache)
        return lay_out(resolved.keys, resolved.quant_cfg), resolved.algorithms


def estimate_from_headers(weights: ModelWeights, tp: int, pp: int) -> int:
    """Estimate the bytes of a rank for a format that checkpoints do not support.

    Matrices except the embedding are cut evenly over all ranks; vectors and the embedding are whole on each.
    """
    whole = cut = 0
    for tensor in weights.tensors.values():
        if len(tensor.shape) < 2 or "embed_tokens" in tensor.name:
            whole += tensor.nbytes
        else:
            cut += tensor.nbytes
    return whole + ceil_div(cut, tp * pp)
