"""Compare every weight of a checkpoint, dequantized, with the model that it was made of."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from enginix.checkpoint.byte_sources import KnownBytes, OutputTensor, SourceFileReader
from enginix.checkpoint.config import FILE, CheckpointConfig, parse_checkpoint_config
from enginix.checkpoint.describe import describe_checkpoint_config, find_variant
from enginix.checkpoint.formats import NumberFormat, format_of
from enginix.checkpoint.formats.nvfp4 import dequantize_nvfp4 as dequantize_nvfp4
from enginix.checkpoint.layout import CheckpointLayout
from enginix.checkpoint.mapped_tensors import RankFile
from enginix.checkpoint.numbers import Array, list_fp8_values, to_float32, unpack_int4_rows
from enginix.checkpoint.rank_modules import KvCacheModule, LinearModule, MatrixSlice, VectorModule
from enginix.checkpoint.source_tensors import SourceTensors, name_source_tensors
from enginix.checkpoint.verification_report import Finding
from enginix.checkpoint.verify import algorithm_of, nvfp4_form
from enginix.checkpoint.write import rank_file_name
from enginix.errors import ManifestError, UsageError
from enginix.manifest import read_manifest
from enginix.model import open_weights
from enginix.model.config import read_model_config
from enginix.model.mapped_tensors import map_tensor
from enginix.progress import track_step

ROWS = 1024  # output rows compared at once

# A value that is rounded once is half a step away, and a quarter on average; the rest covers what is computed
# in 16 bits on the way. Measured on ModelOpt's exports of tiny-qwen3: 0.55 and 0.26.
STEPS, MEAN_STEPS = 0.6, 0.3
# FP8 matrices that are merged take one scale and are rounded once more, from steps up to twice as wide.
MERGED_STEPS, MERGED_MEAN_STEPS = 1.6, 0.6
# Relative: scales in 16 bits; of pre-quant scales, both they and the norms that they are folded into.
_SCALE_ROUNDING, _FOLDED_ROUNDING = 2**-9, 2**-7
# Block scales below float8's normal numbers are this far off at most, in units of the matrix's scale.
_BLOCK_ROUNDING = 6 * 2**-10

# Matrix → the norm before it, the first that its layer has: pre-quant scales are folded into it.
_MLP_NORMS = ("mlp_layernorm", "pre_feedforward_layernorm", "post_layernorm", "input_layernorm")
_NORMS_BEFORE = {"qkv": ("input_layernorm",), "fc": _MLP_NORMS, "gate": _MLP_NORMS}

# Half a step of rounding to the checkpoint's dtype, relative; the absolute part covers float16's subnormals.
_ROUNDING = {"bfloat16": (2**-8, 2**-134), "float16": (2**-11, 2**-25), "float32": (0.0, 0.0)}


# Fields of a checkpoint's configuration that change the computation, beside the weights' own shapes.
_COMPUTED_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "hidden_act", "attn_bias", "mlp_bias",
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_size", "norm_epsilon",
    "max_position_embeddings", "position_embedding_type", "rotary_base", "rotary_scaling",
    "rotary_embedding_dim", "original_max_position_embeddings", "longrope_short", "longrope_long", "moe",
)  # fmt: skip


# Keys that options of the conversion decide, and no model.
_CHOSEN_KEYS = {"dtype", "mapping", "quantization", "use_parallel_embedding", "embedding_sharding_dim"}


def _values_match(stored: Any, expected: Any) -> bool:
    if isinstance(stored, Mapping) and isinstance(expected, Mapping):
        return set(stored) == set(expected) and all(
            _values_match(stored[key], expected[key]) for key in stored
        )
    if isinstance(stored, float) and isinstance(expected, (int, float)):
        return math.isclose(stored, expected, rel_tol=1e-9)
    return bool(stored == expected)


def _is_converted_here(checkpoint: Path) -> bool:
    """Return whether a checkpoint's manifest says that this conversion wrote it, and no other tool's."""
    try:
        return read_manifest(checkpoint, "checkpoint").options.get("converter") == "enginix"
    except ManifestError:
        return False


def _map_source_tensor(source: SourceTensors, module: str, leaf: str) -> Array:
    return map_tensor(source.weights.tensors[source.name(module, leaf)])


def dequantize_source_rows(
    source: SourceTensors, module: str, rows: slice, transposed: bool = False
) -> Array:
    """Return output rows of a model's matrix as float32, dequantized, pre-quant scale included.

    Args:
        transposed: an unquantized matrix is stored as [inp, out].
    """
    info = source.weights.tensors[source.name(module, "weight")]
    weight = map_tensor(info)
    if not source.quantized(module):
        weight = weight.T if transposed else weight
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
        is_by_expert = linear.stacked and len(array) == len(linear.groups)
        expert_array = array[expert : expert + 1] if is_by_expert else array
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


@dataclass(frozen=True)
class NormPair:
    """The weights of the norm before a matrix, in the checkpoint and in the model, float32 [inp]."""

    stored: Array
    model: Array


def has_prequant_scales(algorithm: str | None) -> bool:
    """Return whether a format multiplies a matrix's inputs by scales of their own."""
    return algorithm is not None and ("AWQ" in algorithm or "SQ" in algorithm)


def _block_slack(leaves: Mapping[str, Array]) -> float:
    """Return how far NVFP4's smallest blocks may be off, whose scales have few bits; 0 for other formats."""
    for leaf in ("weights_global_scaling_factor", "weights_scaling_factor_2"):
        if leaf in leaves:
            return float(np.max(leaves[leaf])) * _BLOCK_ROUNDING
    return float(np.max(leaves["alpha"] / leaves["activation_global_scaling_factor"])) * _BLOCK_ROUNDING


class CheckpointComparison:
    """Compares a checkpoint with the model that was converted, or with the one before quantization.

    Args:
        steps: factor on the steps of a number format that a weight may be away, at most and on average.

    Raises:
        UsageError: the model is of another architecture.
        EnginixError: checkpoint or model cannot be read.
    """

    def __init__(self, checkpoint: Path, model: Path, steps: float = 1.0) -> None:
        self.directory, self.steps = checkpoint, steps
        self.config = CheckpointConfig.read(checkpoint)
        self.layout = CheckpointLayout(self.config)
        variant = find_variant(self.config)
        self.model = read_model_config(model, variant=variant)
        self.source = SourceTensors(open_weights(model), SourceFileReader(), name_source_tensors(self.model))
        if self.config.architecture != self.model.architecture:
            raise UsageError(
                f"the checkpoint is {self.config.architecture}, the model {self.model.architecture}",
                where=str(model),
                fix="--against the model that was converted",
            )

    def findings(self) -> Iterator[Finding]:
        """Yield a finding for each key, matrix or vector that differs from the model's."""
        yield from self._configuration()
        formats = self.config.quantization
        if "layout" in self.model.description and formats.quant_algo is formats.kv_cache_quant_algo is None:
            yield from self._exact_tensors()
            return
        for rank in self.config.mapping.ranks():
            file = RankFile(self.directory / rank_file_name(rank))
            form = nvfp4_form(dict(file.tensors), self.layout, rank)
            modules = list(self.layout.rank(rank))
            norms = {m.name: m for m in modules if isinstance(m, VectorModule) and m.leaf == "weight"}
            linears = [module for module in modules if isinstance(module, LinearModule)]
            norm_before = {m.name: norm.name for m in linears if (norm := self._folded_norm(m, norms))}
            pairs = {name: self._norm_pair(norms[name], file) for name in {*norm_before.values()}}
            with track_step("comparing", len(modules), "modules") as progress:
                for module in modules:
                    if isinstance(module, VectorModule):
                        yield from self._vector(module, file, module.name in pairs, pairs.get(module.name))
                    elif isinstance(module, LinearModule):
                        pair = pairs.get(norm_before.get(module.name, ""))
                        yield from self._linear(module, file, form, pair)
                    elif isinstance(module, KvCacheModule):
                        yield from self._cache_scales(module, file)
                    progress.advance()

    def _exact_tensors(self) -> Iterator[Finding]:
        """Compare the bytes of an unquantized checkpoint with those that conversion makes of the model."""
        from enginix.checkpoint.convert import ConvertOptions, derive_conversion_spec

        config = self.config
        options = ConvertOptions(
            dtype=config.dtype,
            mapping=config.mapping,
            parallel_embedding=config.use_parallel_embedding,
            embedding_sharding_dim=config.embedding_sharding_dim,
            variant=self.model.variant,
        )
        conversion = derive_conversion_spec(self.model.directory, options)
        for rank, outputs in enumerate(conversion.ranks):
            file = RankFile(self.directory / rank_file_name(rank))
            for output in outputs:
                where, info = f"{file.path.name}: {output.name}", file.tensors.get(output.name)
                if info is None:
                    yield Finding(where, "missing in the checkpoint")
                elif (info.dtype, info.shape) != (output.dtype, output.shape):
                    yield Finding(
                        where, f"is {info.dtype} {list(info.shape)}, not {output.dtype} {list(output.shape)}"
                    )
                elif not self._holds_bytes(file[output.name], output):
                    yield Finding(where, "differs from the model's")

    def _holds_bytes(self, stored: Array, output: OutputTensor) -> bool:
        data, begin = stored.reshape(-1).view(np.uint8), 0
        for part in output.parts:
            for block in part.blocks(self.source.reader):
                if data[begin : begin + len(block)].tobytes() != block:
                    return False
                begin += len(block)
        return True

    def _configuration(self) -> Iterator[Finding]:
        """Yield the keys whose value for the loader differs from the one that conversion would write."""
        described = describe_checkpoint_config(self.model, self.config.dtype, self.config.mapping, {})
        expected = parse_checkpoint_config(described, FILE)
        if _is_converted_here(self.directory):
            stored = json.loads((self.directory / FILE).read_bytes())
            for key in sorted({*stored, *described} - {*_CHOSEN_KEYS, *_COMPUTED_KEYS}):
                if key not in described:
                    yield Finding(f"{FILE}: {key}", "is no key that conversion writes")
                elif key not in stored or not _values_match(stored[key], described[key]):
                    yield Finding(
                        f"{FILE}: {key}", f"is {stored.get(key)!r}; the model's is {described[key]!r}"
                    )
        for key in _COMPUTED_KEYS:
            stored_value, expected_value = getattr(self.config, key), getattr(expected, key)
            if not _values_match(stored_value, expected_value):
                yield Finding(
                    f"{FILE}: {key}", f"is {stored_value!r} for the loader; the model's is {expected_value!r}"
                )

    def _folded_norm(self, linear: LinearModule, norms: Mapping[str, VectorModule]) -> VectorModule | None:
        """Return the checkpoint's norm that holds a matrix's pre-quant scales, if the model has none."""
        if not has_prequant_scales(algorithm_of(linear, self.config)) or any(
            self.source.quantized(module) for module in linear.modules()
        ):
            return None
        layer, leaf = linear.name.rsplit(".", 2)[0], linear.name.rsplit(".", 1)[-1]
        names = (f"{layer}.{name}" for name in _NORMS_BEFORE.get(leaf, ()))
        return next((norms[name] for name in names if name in norms), None)

    def _norm_pair(self, norm: VectorModule, file: RankFile) -> NormPair | None:
        info = self.source.weights.tensors.get(self.source.name(norm.module, norm.leaf))
        stored = file.tensors.get(norm.tensor_name)
        if info is None or stored is None or info.shape != stored.shape:
            return None  # reported with the norm itself
        model_values = to_float32(map_tensor(info), info.dtype) + np.float32(norm.offset)
        return NormPair(to_float32(map_tensor(stored), stored.dtype), model_values)

    def _rounded(self, expected: Array, stored: Array, dtype: str | None = None) -> bool:
        relative, absolute = _ROUNDING[dtype or self.config.dtype]
        return expected.shape == stored.shape and bool(
            (np.abs(stored - expected) <= np.abs(expected) * relative + absolute).all()
        )

    def _vector(
        self, module: VectorModule, file: RankFile, is_folded: bool, norms: NormPair | None
    ) -> Iterator[Finding]:
        name = module.tensor_name
        info = self.source.weights.tensors.get(self.source.name(module.module, module.leaf))
        if info is None or name not in file.tensors:
            yield Finding(f"{file.path.name}: {name}", "missing in the model or the checkpoint")
            return
        model_values = to_float32(map_tensor(info), info.dtype) + np.float32(module.offset)
        stored_values = to_float32(file[name], file.tensors[name].dtype)
        if is_folded and module.leaf == "bias" and norms is not None:  # scaled as the weight is
            scaled, expected = stored_values * norms.model, model_values * norms.stored
            if not (np.abs(scaled - expected) <= np.abs(expected) * _FOLDED_ROUNDING + 1e-6).all():
                yield Finding(f"{file.path.name}: {name}", "differs from the model's")
        elif is_folded:  # compared as a product with the matrices behind it
            if stored_values.shape != model_values.shape or not np.isfinite(stored_values).all():
                yield Finding(f"{file.path.name}: {name}", "is not finite, or of another size")
        elif not self._rounded(model_values, stored_values):
            yield Finding(f"{file.path.name}: {name}", "differs from the model's")

    def _linear(
        self, linear: LinearModule, file: RankFile, form: str, norms: NormPair | None
    ) -> Iterator[Finding]:
        where = f"{file.path.name}: {linear.name}"
        missing = [m for m in linear.modules() if not self.source.has(m, "weight")]
        leaves = file.leaves(linear.name)
        algorithm = algorithm_of(linear, self.config)
        number_format = format_of(algorithm, form)
        absent = set(number_format.spec(linear, self.config)) - set(leaves)
        if missing or absent:
            yield Finding(where, f"missing: {', '.join(missing or sorted(absent))}")
            return
        if findings := list(self._scales(linear, number_format, leaves, where)):
            yield from findings
            return
        bias = leaves.pop("bias", None)
        is_merged = algorithm == "FP8" and any(len(group) > 1 for group in linear.groups)
        most = self.steps * (MERGED_STEPS if is_merged else STEPS)
        most_on_average = self.steps * (MERGED_MEAN_STEPS if is_merged else MEAN_STEPS)
        relative = _FOLDED_ROUNDING if has_prequant_scales(algorithm) else _SCALE_ROUNDING
        slack = _block_slack(leaves) if algorithm == "NVFP4" else 0.0
        total, count = 0.0, 0
        for expert, group in enumerate(linear.groups):
            for piece, model_range, merged_range in _iterate_row_blocks(group):
                stored_rows = _select_stored_rows(leaves, linear, expert, merged_range)
                stored_values, step = number_format.dequantize(stored_rows, linear)
                model_values = dequantize_source_rows(
                    self.source, piece.module, model_range, piece.transposed
                )[:, slice(*piece.cols)]
                stored_values = stored_values.reshape(model_values.shape)
                if step.ndim == 0:
                    is_near = self._rounded(model_values, stored_values, linear.dtype)
                else:
                    step = step.reshape(model_values.shape)
                    if norms is not None:
                        stored_values, step = stored_values * norms.stored, step * np.abs(norms.stored)
                        model_values = model_values * norms.model
                    error = np.abs(stored_values - model_values)
                    bound = step * most + np.abs(model_values) * relative + slack
                    is_near = bool((error <= bound).all())
                    spread = step > 0
                    total += float((error[spread] / step[spread]).sum())
                    count += int(spread.sum())
                if not is_near:
                    worst = float(np.abs(stored_values - model_values).max())
                    row_range = f"rows {model_range.start} to {model_range.stop} of {piece.module}"
                    yield Finding(where, f"{row_range} differ by up to {worst:g}")
                    return
        if count and not total / count <= most_on_average:
            yield Finding(
                where,
                f"values are {total / count:.2g} steps of {algorithm} away on average; rounding leaves "
                f"{most_on_average:g} at most",
            )
        if bias is not None:
            yield from self._bias(linear, bias, where)

    def _scales(
        self, linear: LinearModule, number_format: NumberFormat, leaves: Mapping[str, Array], where: str
    ) -> Iterator[Finding]:
        """Compare scales that a quantized model has, above all those of activations, byte by byte."""
        if not all(self.source.quantized(module) for module in linear.modules()):
            return
        for leaf, parts in number_format.parts(linear, self.config, self.source).items():
            known = [part.data for part in parts if isinstance(part, KnownBytes)]
            if len(known) == len(parts) and leaves[leaf].tobytes() != b"".join(known):
                yield Finding(f"{where}.{leaf}", "differs from the model's")

    def _cache_scales(self, module: KvCacheModule, file: RankFile) -> Iterator[Finding]:
        if self.config.quantization.kv_cache_quant_algo is None:
            return
        names = list(zip(module.modules, ("k_scale", "v_scale"), strict=True))
        if not any(self.source.has(*name) for name in names):
            return
        scale = max(self.source.scale(*name) if self.source.has(*name) else 1.0 for name in names)
        name = f"{module.name}.kv_cache_scaling_factor"
        if name in file.tensors and float(file[name].reshape(-1)[0]) != scale:
            yield Finding(f"{file.path.name}: {name}", "differs from the model's")

    def _bias(self, linear: LinearModule, bias: Array, where: str) -> Iterator[Finding]:
        row = 0
        for piece in linear.groups[0]:
            info = self.source.weights.tensors.get(self.source.name(piece.module, "bias"))
            if info is None:
                yield Finding(where, f"{piece.module} has no bias in the model")
                return
            model_bias = to_float32(map_tensor(info), info.dtype)[slice(*piece.rows)]
            model_bias = np.zeros_like(model_bias) if linear.zero_bias else model_bias
            if not self._rounded(model_bias, bias[row : row + len(model_bias)].astype(np.float32)):
                yield Finding(where, f"bias differs from that of {piece.module}")
            row += len(model_bias)
