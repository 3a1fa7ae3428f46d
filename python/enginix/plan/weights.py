"""Bytes of every rank of a checkpoint, from configuration and headers: what ``enginix convert`` writes.

The converter's own layout says which tensors a rank has; no weight and no scale is read, so that this works
on headers alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

from enginix.checkpoint import config as ckpt
from enginix.checkpoint.describe import describe
from enginix.checkpoint.formats import format_of
from enginix.checkpoint.formats.nvfp4 import fits_tiles
from enginix.checkpoint.layout import KvCache, Layout, Linear, Vector
from enginix.checkpoint.mapping import Mapping, check
from enginix.checkpoint.parts import Output, Reader
from enginix.checkpoint.resolve import resolve
from enginix.checkpoint.source import Source
from enginix.checkpoint.write import plan_file
from enginix.errors import EnginixError
from enginix.model import ModelConfig, Weights
from enginix.model.safetensors import DTYPES
from enginix.plan.arithmetic import ceil_div


@dataclass(frozen=True)
class Stage:
    """One rank of a pipeline stage; all ranks of a stage are of one size.

    Attributes:
        weights: bytes of its tensors.
        file: bytes of ``rank{r}.safetensors``.
    """

    weights: int
    file: int


@dataclass(frozen=True)
class Ranks:
    """A checkpoint's sizes: one entry a pipeline stage."""

    tensor_parallel: int
    stages: tuple[Stage, ...]

    @property
    def heaviest(self) -> int:
        return max(s.weights for s in self.stages)

    @property
    def files(self) -> int:
        """Bytes of all rank files together."""
        return self.tensor_parallel * sum(s.file for s in self.stages)


class Checkpoint:
    """Sizes of the checkpoints that a model can become.

    Args:
        dtype: of everything unquantized; None as ``enginix convert`` chooses.
    """

    def __init__(self, model: ModelConfig, weights: Weights, dtype: str | None = None) -> None:
        self.model, self.weights = model, weights
        found = dtype or model.dtype or "float16"
        self.dtype = "float16" if dtype is None and found == "float32" else found
        self.ranks = lru_cache(maxsize=None)(self._ranks)

    def heaviest(self, tp: int, pp: int, quantization: str | None) -> int:
        """Bytes of the heaviest rank; what ``arithmetic.Weights`` asks for."""
        return self.ranks(tp, pp, quantization, None).heaviest

    def _ranks(self, tp: int, pp: int, quantization: str | None, kv_cache: str | None) -> Ranks:
        """Sizes of one checkpoint.

        Args:
            quantization: a format that ModelOpt would have quantized it to; None for the model's own.
            kv_cache: ``FP8`` for a model that has no KV cache scales.

        Raises:
            UsageError: sizes that do not divide the model.
            ModelError: what ``enginix convert`` refuses for its shapes.
        """
        experts = self.model.experts
        ep = 1 if experts is None or experts.width % tp == 0 else tp
        mapping = Mapping(tp, pp, ep)
        check(self.model, mapping)
        layout, algorithms = self._layout(mapping, quantization, kv_cache)
        form = _nvfp4_form(layout, algorithms)
        stages = []
        for stage in range(pp):
            outputs = self._outputs(layout, stage * tp, algorithms, form)
            size = sum(prod(o.shape) * DTYPES[o.dtype] for o in outputs)
            stages.append(Stage(size, plan_file(outputs)[2]))
        return Ranks(tp, tuple(stages))

    def _layout(
        self, mapping: Mapping, quantization: str | None, kv_cache: str | None
    ) -> tuple[Layout, dict[str, str | None]]:
        plain = Layout(ckpt.parse(describe(self.model, self.dtype, mapping, {}), ckpt.FILE))
        if quantization is not None:
            keys = {"quant_algo": quantization, "group_size": 16 if quantization == "NVFP4" else 128}
            raw = describe(self.model, self.dtype, mapping, keys)
            every = {m.name: quantization for m in _linears(plain) if m.quantizable}
            return Layout(ckpt.parse(raw, ckpt.FILE)), dict(every)
        with Reader() as reader:
            source = Source(self.weights, reader, tied=self.model.tie_word_embeddings)
            resolved = resolve(self.model.quantization, plain, source, kv_cache=kv_cache)
        raw = describe(self.model, self.dtype, mapping, resolved.keys)
        return Layout(ckpt.parse(raw, ckpt.FILE, resolved.quant_cfg)), resolved.algorithms

    def _outputs(
        self, layout: Layout, rank: int, algorithms: dict[str, str | None], form: str
    ) -> list[Output]:
        dtype, found = ckpt.DTYPES[layout.config.dtype], list[Output]()
        for module in layout.rank(rank):
            if isinstance(module, Vector):
                found.append(Output(f"{module.name}.weight", dtype, (module.size,), ()))
            elif isinstance(module, Linear):
                spec = format_of(algorithms.get(module.name), form).spec(module, layout.config)
                found.extend(Output(f"{module.name}.{leaf}", *row, ()) for leaf, row in spec.items())
                if module.bias:
                    found.append(Output(f"{module.name}.bias", dtype, (module.out,), ()))
            elif isinstance(module, KvCache) and layout.config.quantization.kv_cache_quant_algo:
                for leaf in ("kv_cache_scaling_factor", "kv_cache_rcp_scaling_factor"):
                    found.append(Output(f"{module.name}.{leaf}", "F32", (1,), ()))
        return found


def _linears(layout: Layout) -> list[Linear]:
    return [m for r in layout.config.mapping.ranks() for m in layout.rank(r) if isinstance(m, Linear)]


def _nvfp4_form(layout: Layout, algorithms: dict[str, str | None]) -> str:
    """The form that ``enginix convert --nvfp4-form auto`` chooses."""
    linears = [m for m in _linears(layout) if algorithms.get(m.name) == "NVFP4"]
    whole = all(map(fits_tiles, linears)) or any(m.stacked for m in linears)
    return "trtllm" if whole else "modelopt"


def from_headers(weights: Weights, tp: int, pp: int) -> int:
    """Bytes of a rank for a format that no checkpoint carries: an estimate.

    Matrices but the embedding are cut evenly over all ranks; vectors and the embedding are whole on each.
    """
    whole = cut = 0
    for tensor in weights.tensors.values():
        if len(tensor.shape) < 2 or "embed_tokens" in tensor.name:
            whole += tensor.nbytes
        else:
            cut += tensor.nbytes
    return whole + ceil_div(cut, tp * pp)


def convertible(model: ModelConfig, weights: Weights, dtype: str | None) -> Checkpoint | EnginixError:
    """The checkpoint's sizes, or why there can be none."""
    found = Checkpoint(model, weights, dtype)
    try:
        found.heaviest(1, 1, None)
    except EnginixError as e:
        return e
    return found
