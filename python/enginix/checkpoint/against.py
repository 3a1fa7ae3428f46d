"""A checkpoint held against the model that it was made of: every weight, dequantized on both sides."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from enginix.checkpoint.config import FILE, CheckpointConfig, parse
from enginix.checkpoint.describe import describe
from enginix.checkpoint.findings import Finding
from enginix.checkpoint.formats import format_of
from enginix.checkpoint.formats.nvfp4 import dequantize as dequantize_nvfp4
from enginix.checkpoint.layout import Layout, Linear, Slice, Vector
from enginix.checkpoint.numbers import fp8_values, to_float32, unpack_int4_rows
from enginix.checkpoint.parts import Reader
from enginix.checkpoint.source import Source
from enginix.checkpoint.stored import RankFile, mapped
from enginix.checkpoint.verify import algorithm_of, nvfp4_form
from enginix.checkpoint.write import file_name
from enginix.errors import UsageError
from enginix.model import ModelConfig, open_weights
from enginix.wording import with_article

Array = npt.NDArray[Any]
ROWS = 1024  # output rows compared at once

# Half a step of rounding to the checkpoint's dtype, relative; the absolute part covers float16's subnormals.
_ROUNDING = {"bfloat16": (2**-8, 2**-134), "float16": (2**-11, 2**-25), "float32": (0.0, 0.0)}


# Fields of a checkpoint's configuration that decide what is computed, beside the weights' own shapes.
_FUNCTION = (
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_size", "norm_epsilon",
    "max_position_embeddings", "position_embedding_type", "rotary_base", "rotary_scaling",
    "rotary_embedding_dim", "original_max_position_embeddings", "longrope_short", "longrope_long", "moe",
)  # fmt: skip


def _alike(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        return set(ours) == set(theirs) and all(_alike(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, float) and isinstance(theirs, (int, float)):
        return math.isclose(ours, theirs, rel_tol=1e-9)
    return bool(ours == theirs)


def _array(source: Source, module: str, leaf: str) -> Array:
    return mapped(source.weights.tensors[source.name(module, leaf)])


def source_rows(source: Source, module: str, rows: slice) -> Array:
    """Output rows of a model's matrix as float32, dequantized, pre-quant scale included."""
    info = source.weights.tensors[source.name(module, "weight")]
    weight = mapped(info)
    if not source.quantized(module):
        return to_float32(np.ascontiguousarray(weight[rows]), info.dtype)
    scale = _array(source, module, "weight_scale")
    if info.dtype == "F8_E4M3":
        each = scale.reshape(-1, 1)[rows] if scale.size > 1 else scale.reshape(1, 1)
        values = fp8_values()[weight[rows].view(np.uint8)] * each
    elif scale.dtype.itemsize == 1:
        values = dequantize_nvfp4(weight[rows], scale[rows], _array(source, module, "weight_scale_2"))[0]
    elif scale.ndim == 2:
        packed = unpack_int4_rows(weight[rows.start // 2 : (rows.stop + 1) // 2])
        first = rows.start % 2
        packed = packed[first : first + rows.stop - rows.start]
        values = packed * np.repeat(scale[rows], packed.shape[1] // scale.shape[1], axis=1)
    else:
        values = weight[rows].astype(np.float32) * scale.reshape(-1, 1)[rows]
    if source.has(module, "pre_quant_scale"):
        values = values * _array(source, module, "pre_quant_scale").astype(np.float32)
    return np.asarray(values, np.float32)


def _stored_rows(leaves: Mapping[str, Array], linear: Linear, expert: int, rows: slice) -> dict[str, Array]:
    """The part of each of a matrix's tensors that concerns some output rows of one expert."""
    found = {}
    for leaf, array in leaves.items():
        own = array[expert : expert + 1] if linear.stacked and len(array) == len(linear.groups) else array
        axis = 1 if linear.stacked and own.ndim > 1 else 0
        if leaf == "prequant_scaling_factor" or own.ndim <= axis or own.shape[axis] == 1:
            found[leaf] = own
        else:
            each = linear.out // own.shape[axis]  # 2 where two rows share a byte
            part = slice(rows.start // each, rows.stop // each)
            found[leaf] = own[:, part] if axis else own[part]
    return found


def _row_blocks(group: tuple[Slice, ...]) -> Iterator[tuple[Slice, slice, slice]]:
    """Slices, their rows in the model, and the same rows in the merged matrix, in blocks of even size."""
    at = 0
    for piece in group:
        for begin in range(piece.rows[0], piece.rows[1], ROWS):
            end = min(begin + ROWS, piece.rows[1])
            here = at + begin - piece.rows[0]
            yield piece, slice(begin, end), slice(here, here + end - begin)
        at += piece.height


class Comparison:
    """Compares checkpoint and model.

    Raises:
        UsageError: the checkpoint's matrices carry pre-quant scales, and the model given is not the quantized
            one.
        EnginixError: either cannot be read.
    """

    def __init__(self, checkpoint: Path, model: Path) -> None:
        self.directory = checkpoint
        self.config = CheckpointConfig.read(checkpoint)
        self.layout = Layout(self.config)
        self.model = ModelConfig.read(model)
        self.source = Source(open_weights(model), Reader(), tied=self.model.tie_word_embeddings)
        algorithm = self.config.quantization.quant_algo or ""
        if ("AWQ" in algorithm or "SQ" in algorithm) and self.model.quantization is None:
            raise UsageError(
                f"{with_article(algorithm)} checkpoint cannot be compared with the unquantized model: "
                "its scales are folded into norms",
                where=str(model),
                fix="--against the quantized model that was converted",
            )
        if self.config.architecture != self.model.architecture:
            raise UsageError(
                f"the checkpoint is {self.config.architecture}, the model {self.model.architecture}",
                where=str(model),
                fix="--against the model that was converted",
            )

    def findings(self) -> Iterator[Finding]:
        """Each key, matrix or vector that means something else than in the model."""
        yield from self._configuration()
        for rank in self.config.mapping.ranks():
            file = RankFile(self.directory / file_name(rank))
            form = nvfp4_form(dict(file.tensors), self.layout, rank)
            for module in self.layout.rank(rank):
                if isinstance(module, Vector):
                    yield from self._vector(module, file)
                elif isinstance(module, Linear):
                    yield from self._linear(module, file, form)

    def _configuration(self) -> Iterator[Finding]:
        """Keys that the loader reads otherwise than conversion would write them."""
        described = describe(self.model, self.config.dtype, self.config.mapping, {})
        expected = parse(described, FILE)
        for key in _FUNCTION:
            ours, theirs = getattr(self.config, key), getattr(expected, key)
            if not _alike(ours, theirs):
                yield Finding(f"{FILE}: {key}", f"is {ours!r} to the loader; the model's is {theirs!r}")

    def _rounded(self, theirs: Array, ours: Array, dtype: str | None = None) -> bool:
        relative, absolute = _ROUNDING[dtype or self.config.dtype]
        return bool((np.abs(ours - theirs) <= np.abs(theirs) * relative + absolute).all())

    def _near(self, theirs: Array, ours: Array, step: Array, linear: Linear) -> bool:
        if step.ndim == 0:
            return self._rounded(theirs, ours, linear.dtype)
        bound = step.reshape(theirs.shape) + np.abs(theirs) * np.float32(1e-6)
        return bool((np.abs(ours - theirs) <= bound).all())

    def _vector(self, module: Vector, file: RankFile) -> Iterator[Finding]:
        name = f"{module.name}.weight"
        info = self.source.weights.tensors.get(f"{module.module}.weight")
        if info is None or name not in file.tensors:
            yield Finding(f"{file.path.name}: {name}", "missing in the model or the checkpoint")
        elif not self._rounded(to_float32(mapped(info), info.dtype), file[name].astype(np.float32)):
            yield Finding(f"{file.path.name}: {name}", "differs from the model's")

    def _linear(self, linear: Linear, file: RankFile, form: str) -> Iterator[Finding]:
        where = f"{file.path.name}: {linear.name}"
        missing = [m for m in linear.modules() if not self.source.has(m, "weight")]
        leaves = file.leaves(linear.name)
        number_format = format_of(algorithm_of(linear, self.config), form)
        absent = set(number_format.spec(linear, self.config)) - set(leaves)
        if missing or absent:
            yield Finding(where, f"missing: {', '.join(missing or sorted(absent))}")
            return
        bias = leaves.pop("bias", None)
        for expert, group in enumerate(linear.groups):
            for piece, theirs_at, ours_at in _row_blocks(group):
                rows = _stored_rows(leaves, linear, expert, ours_at)
                ours, step = number_format.dequantize(rows, linear)
                theirs = source_rows(self.source, piece.module, theirs_at)[:, slice(*piece.cols)]
                ours = ours.reshape(theirs.shape)
                if not self._near(theirs, ours, step, linear):
                    worst = float(np.abs(ours - theirs).max())
                    at = f"rows {theirs_at.start} to {theirs_at.stop} of {piece.module}"
                    yield Finding(where, f"{at} differ by up to {worst:g}")
                    return
        if bias is not None:
            yield from self._bias(linear, bias, where)

    def _bias(self, linear: Linear, bias: Array, where: str) -> Iterator[Finding]:
        at = 0
        for piece in linear.groups[0]:
            info = self.source.weights.tensors.get(f"{piece.module}.bias")
            if info is None:
                yield Finding(where, f"{piece.module} has no bias in the model")
                return
            theirs = to_float32(mapped(info), info.dtype)[slice(*piece.rows)]
            if not self._rounded(theirs, bias[at : at + len(theirs)].astype(np.float32)):
                yield Finding(where, f"bias differs from that of {piece.module}")
            at += len(theirs)
