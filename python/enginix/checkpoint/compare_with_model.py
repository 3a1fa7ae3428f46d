"""Compare every weight of a checkpoint, dequantized, with the model that it was made of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from enginix.checkpoint.byte_sources import SourceFileReader
from enginix.checkpoint.config import FILE, CheckpointConfig, parse_checkpoint_config
from enginix.checkpoint.describe import describe_checkpoint_config
from enginix.checkpoint.formats import format_of
from enginix.checkpoint.formats.nvfp4 import dequantize_nvfp4 as dequantize_nvfp4
from enginix.checkpoint.layout import CheckpointLayout, LinearModule, MatrixSlice, VectorModule
from enginix.checkpoint.mapped_tensors import RankFile, map_tensor
from enginix.checkpoint.numbers import list_fp8_values, to_float32, unpack_int4_rows
from enginix.checkpoint.source_tensors import SourceTensors
from enginix.checkpoint.verification_report import Finding
from enginix.checkpoint.verify import algorithm_of, nvfp4_form
from enginix.checkpoint.write import rank_file_name
from enginix.errors import UsageError
from enginix.model import ModelConfig, open_weights
from enginix.wording import with_article

Array = npt.NDArray[Any]
ROWS = 1024  # output rows compared at once

# Half a step of rounding to the checkpoint's dtype, relative; the absolute part covers float16's subnormals.
_ROUNDING = {"bfloat16": (2**-8, 2**-134), "float16": (2**-11, 2**-25), "float32": (0.0, 0.0)}


# Fields of a checkpoint's configuration that change the computation, beside the weights' own shapes.
_COMPUTED_KEYS = (
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_size", "norm_epsilon",
    "max_position_embeddings", "position_embedding_type", "rotary_base", "rotary_scaling",
    "rotary_embedding_dim", "original_max_position_embeddings", "longrope_short", "longrope_long", "moe",
)  # fmt: skip


def _values_match(stored: Any, expected: Any) -> bool:
    if isinstance(stored, Mapping) and isinstance(expected, Mapping):
        return set(stored) == set(expected) and all(
            _values_match(stored[key], expected[key]) for key in stored
        )
    if isinstance(stored, float) and isinstance(expected, (int, float)):
        return math.isclose(stored, expected, rel_tol=1e-9)
    return bool(stored == expected)


def _map_source_tensor(source: SourceTensors, module: str, leaf: str) -> Array:
    return map_tensor(source.weights.tensors[source.name(module, leaf)])


def dequantize_source_rows(source: SourceTensors, module: str, rows: slice) -> Array:
    """Return output rows of a model's matrix as float32, dequantized, pre-quant scale included."""
    info = source.weights.tensors[source.name(module, "weight")]
    weight = map_tensor(info)
    if not source.quantized(module):
        return to_float32(np.ascontiguousarray(weight[rows]), info.dtype)
    scale = _map_source_tensor(source, module, "weight_scale")
    if info.dtype == "F8_E4M3":
        row_scale = scale.reshape(-1, 1)[rows] if scale.size > 1 else scale.reshape(1, 1)
        values = list_fp8_values()[weight[rows].view(np.uint8)] * row_scale
    elif scale.dtype.itemsize == 1:
        values = dequantize_nvfp4(
            weight[rows], scale[rows], _map_source_tensor(source, module, "weight_scale_2")
        )[0]
    elif scale.ndim == 2:
        packed = unpack_int4_rows(weight[rows.start // 2 : (rows.stop + 1) // 2])
        odd_row = rows.start % 2
        packed = packed[odd_row : odd_row + rows.stop - rows.start]
        values = packed * np.repeat(scale[rows], packed.shape[1] // scale.shape[1], axis=1)
    else:
        values = weight[rows].astype(np.float32) * scale.reshape(-1, 1)[rows]
    if source.has(module, "pre_quant_scale"):
        values = values * _map_source_tensor(source, module, "pre_quant_scale").astype(np.float32)
    return np.asarray(values, np.float32)


def _select_stored_rows(
    leaves: Mapping[str, Array], linear: LinearModule, expert: int, rows: slice
) -> dict[str, Array]:
    """Return the parts of a matrix's tensors that belong to some output rows of one expert."""
    rows_by_leaf = {}
    for leaf, array in leaves.items():
        expert_array = (
            array[expert : expert + 1] if linear.stacked and len(array) == len(linear.groups) else array
        )
        axis = 1 if linear.stacked and expert_array.ndim > 1 else 0
        if leaf == "prequant_scaling_factor" or expert_array.ndim <= axis or expert_array.shape[axis] == 1:
            rows_by_leaf[leaf] = expert_array
        else:
            rows_per_entry = linear.out // expert_array.shape[axis]  # 2 where two rows share a byte
            entries = slice(rows.start // rows_per_entry, rows.stop // rows_per_entry)
            rows_by_leaf[leaf] = expert_array[:, entries] if axis else expert_array[entries]
    return rows_by_leaf


def _iterate_row_blocks(group: tuple[MatrixSlice, ...]) -> Iterator[tuple[MatrixSlice, slice, slice]]:
    """Yield slices, their rows in the model and in the merged matrix, in blocks of even size."""
    merged_row = 0
    for piece in group:
        for begin in range(piece.rows[0], piece.rows[1], ROWS):
            end = min(begin + ROWS, piece.rows[1])
            merged_begin = merged_row + begin - piece.rows[0]
            yield piece, slice(begin, end), slice(merged_begin, merged_begin + end - begin)
        merged_row += piece.height


class CheckpointComparison:
    """Compares a checkpoint with a model.

    Raises:
        UsageError: the checkpoint's matrices carry pre-quant scales, and the given model is not quantized.
        EnginixError: checkpoint or model cannot be read.
    """

    def __init__(self, checkpoint: Path, model: Path) -> None:
        self.directory = checkpoint
        self.config = CheckpointConfig.read(checkpoint)
        self.layout = CheckpointLayout(self.config)
        self.model = ModelConfig.read(model)
        self.source = SourceTensors(
            open_weights(model), SourceFileReader(), tied=self.model.tie_word_embeddings
        )
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
        """Yield a finding for each key, matrix or vector that differs from the model's."""
        yield from self._configuration()
        for rank in self.config.mapping.ranks():
            file = RankFile(self.directory / rank_file_name(rank))
            form = nvfp4_form(dict(file.tensors), self.layout, rank)
            for module in self.layout.rank(rank):
                if isinstance(module, VectorModule):
                    yield from self._vector(module, file)
                elif isinstance(module, LinearModule):
                    yield from self._linear(module, file, form)

    def _configuration(self) -> Iterator[Finding]:
        """Yield the keys whose value for the loader differs from the one that conversion would write."""
        described = describe_checkpoint_config(self.model, self.config.dtype, self.config.mapping, {})
        expected = parse_checkpoint_config(described, FILE)
        for key in _COMPUTED_KEYS:
            stored_value, expected_value = getattr(self.config, key), getattr(expected, key)
            if not _values_match(stored_value, expected_value):
                yield Finding(
                    f"{FILE}: {key}", f"is {stored_value!r} for the loader; the model's is {expected_value!r}"
                )

    def _rounded(self, expected: Array, stored: Array, dtype: str | None = None) -> bool:
        relative, absolute = _ROUNDING[dtype or self.config.dtype]
        return bool((np.abs(stored - expected) <= np.abs(expected) * relative + absolute).all())

    def _near(self, expected: Array, stored: Array, step: Array, linear: LinearModule) -> bool:
        if step.ndim == 0:
            return self._rounded(expected, stored, linear.dtype)
        bound = step.reshape(expected.shape) + np.abs(expected) * np.float32(1e-6)
        return bool((np.abs(stored - expected) <= bound).all())

    def _vector(self, module: VectorModule, file: RankFile) -> Iterator[Finding]:
        name = f"{module.name}.weight"
        info = self.source.weights.tensors.get(f"{module.module}.weight")
        if info is None or name not in file.tensors:
            yield Finding(f"{file.path.name}: {name}", "missing in the model or the checkpoint")
        elif not self._rounded(to_float32(map_tensor(info), info.dtype), file[name].astype(np.float32)):
            yield Finding(f"{file.path.name}: {name}", "differs from the model's")

    def _linear(self, linear: LinearModule, file: RankFile, form: str) -> Iterator[Finding]:
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
            for piece, model_range, merged_range in _iterate_row_blocks(group):
                stored_rows = _select_stored_rows(leaves, linear, expert, merged_range)
                stored_values, step = number_format.dequantize(stored_rows, linear)
                model_values = dequantize_source_rows(self.source, piece.module, model_range)[
                    :, slice(*piece.cols)
                ]
                stored_values = stored_values.reshape(model_values.shape)
                if not self._near(model_values, stored_values, step, linear):
                    worst = float(np.abs(stored_values - model_values).max())
                    row_range = f"rows {model_range.start} to {model_range.stop} of {piece.module}"
                    yield Finding(where, f"{row_range} differ by up to {worst:g}")
                    return
        if bias is not None:
            yield from self._bias(linear, bias, where)

    def _bias(self, linear: LinearModule, bias: Array, where: str) -> Iterator[Finding]:
        row = 0
        for piece in linear.groups[0]:
            info = self.source.weights.tensors.get(f"{piece.module}.bias")
            if info is None:
                yield Finding(where, f"{piece.module} has no bias in the model")
                return
            model_bias = to_float32(map_tensor(info), info.dtype)[slice(*piece.rows)]
            if not self._rounded(model_bias, bias[row : row + len(model_bias)].astype(np.float32)):
                yield Finding(where, f"bias differs from that of {piece.module}")
            row += len(model_bias)
