"""Resolve the number format of each matrix from the model's description and tensors; translate exclude lists.

The model's list names Hugging Face modules, which TensorRT-LLM does not know, and any list replaces the
loader's default patterns, which protect the head and the router. So a new list is written: null if the
defaults suffice, else the defaults and the translated names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from enginix.checkpoint.layout import CheckpointLayout
from enginix.checkpoint.rank_modules import LinearModule
from enginix.checkpoint.source_tensors import SourceTensors
from enginix.errors import ModelError, UsageError
from enginix.model import ModelQuantization
from enginix.model.quantization import SIDECAR
from enginix.tables import load_table

NVFP4_GROUP, AWQ_GROUP = 16, 128


@dataclass(frozen=True)
class ResolvedQuantization:
    """Quantization in the checkpoint's terms.

    Attributes:
        keys: of the ``quantization`` object, where they differ from its defaults.
        quant_cfg: content of ``quant_cfg.json``, for ``MIXED_PRECISION``.
        algorithms: module (layers numbered within their rank) → algorithm or None.
    """

    keys: dict[str, Any] = field(default_factory=dict)
    quant_cfg: dict[str, Any] | None = None
    algorithms: dict[str, str | None] = field(default_factory=dict)


def _find_promised_algorithm(quantization: ModelQuantization | None, module: str) -> str | None:
    if quantization is None or quantization.algorithm == "NO_QUANT":
        return None
    if quantization.algorithm == "MIXED_PRECISION":
        return quantization.layers.get(module)
    return None if quantization.excludes(module) else quantization.algorithm


def _resolve_algorithm(
    linear: LinearModule, quantization: ModelQuantization | None, source: SourceTensors
) -> str | None:
    """Return the one algorithm of a matrix, on which description and tensors must agree."""
    where = str(source.weights.directory)
    modules = linear.modules()
    promised = {m: _find_promised_algorithm(quantization, m) for m in modules}
    for module in modules:
        if source.quantized(module) and promised[module] is None:
            if quantization is None and (source.weights.directory / SIDECAR).exists():
                raise ModelError(
                    f"{module} has scales, and {SIDECAR} names no quant_algo",
                    where=where,
                    fix=f"take {SIDECAR} of the same revision, or export the model again with ModelOpt",
                )
            if quantization is None:
                raise ModelError(
                    f"{module} has scales, but there is no hf_quant_config.json, and config.json has no "
                    "quantization_config",
                    where=where,
                    fix="fetch hf_quant_config.json of the same repository, which ModelOpt writes",
                )
            raise ModelError(
                f"{module} has scales, but the model's quantization config does not cover it",
                where=where,
                fix="export again with ModelOpt; hf_quant_config.json and weights disagree",
            )
        if not source.quantized(module) and promised[module] is not None:
            raise ModelError(
                f"{module} should be {promised[module]}, but has no scales: its quantization is lost",
                where=where,
                fix="export again with ModelOpt; hf_quant_config.json and weights disagree",
            )
    if len(set(promised.values())) > 1:
        what = ", ".join(f"{m} is {a or 'not quantized'}" for m, a in promised.items())
        raise ModelError(
            f"{linear.name} is one matrix in TensorRT-LLM, but {what}",
            where=where,
            fix="quantize or exclude these modules together",
        )
    return next(iter(promised.values()))


def _resolve_by_module(
    layout: CheckpointLayout, quantization: ModelQuantization | None, source: SourceTensors
) -> dict[str, str | None]:
    algorithms: dict[str, str | None] = {}
    for linear in layout.linears():
        if not linear.quantizable:
            if any(source.quantized(m) for m in linear.modules()):
                raise ModelError(
                    f"{linear.modules()[0]} is quantized; TensorRT-LLM keeps {linear.name} in full precision",
                    where=str(source.weights.directory),
                    fix="exclude it when the model is quantized (ModelOpt's own configs do)",
                )
            continue
        algorithm = _resolve_algorithm(linear, quantization, source)
        if quantization is not None and algorithm is None and linear.groups[0][0].transposed:
            raise ModelError(
                f"{linear.modules()[0]} is not quantized in a quantized model: ModelOpt turns the matrices "
                "of this architecture around, and nothing tells which way this one is stored",
                where=str(source.weights.directory),
                fix="quantize all matrices of the layers",
            )
        if algorithms.setdefault(linear.name, algorithm) != algorithm:
            raise UsageError(
                f"{linear.name} is {algorithm or 'not quantized'} in one pipeline stage and "
                f"{algorithms[linear.name] or 'not quantized'} in another; "
                "layers are numbered within their stage",
                where=str(source.weights.directory),
                fix="--pipeline-parallel 1",
            )
    return algorithms


def _resolve_expert_algorithms(
    layout: CheckpointLayout, algorithms: dict[str, str | None]
) -> dict[str, str | None]:
    """Return the algorithm of each module of experts, for instance ``transformer.layers.0.mlp``.

    TensorRT-LLM's quantization pass looks up the module around ``fc`` and ``proj``; its weight preprocessing
    looks up the two themselves. A checkpoint has to name both levels. (Source: TensorRT-LLM's quantize.py and
    modeling_utils.py; the loader completes the names for Mixtral alone.)

    Raises:
        ModelError: ``fc`` and ``proj`` of the same experts differ.
    """
    expert_algorithms: dict[str, str | None] = {}
    for linear in layout.linears():
        if not linear.stacked:
            continue
        module, algorithm = experts_module(linear.name), algorithms[linear.name]
        if expert_algorithms.setdefault(module, algorithm) != algorithm:
            raise ModelError(
                f"{module} is one module in TensorRT-LLM, but its matrices are "
                f"{expert_algorithms[module] or 'unquantized'} and {algorithm or 'unquantized'}",
                fix="quantize or exclude all matrices of a layer's experts together",
            )
    return expert_algorithms


def experts_module(matrix: str) -> str:
    """Return the module around a stacked matrix."""
    return matrix.rsplit(".", 1)[0]


def _group_size(quantization: ModelQuantization, algorithms: set[str]) -> int | None:
    size = quantization.group_size
    if any("AWQ" in a for a in algorithms):
        return size or AWQ_GROUP
    if "NVFP4" in algorithms:
        if size not in (None, NVFP4_GROUP):
            raise ModelError(f"NVFP4 with groups of {size}", fix=f"quantize with groups of {NVFP4_GROUP}")
        return NVFP4_GROUP
    return None


def _make_layer_entry(algorithm: str, group_size: int | None) -> dict[str, Any]:
    if "AWQ" in algorithm:
        return {
            "quant_algo": algorithm,
            "group_size": group_size,
            "has_zero_point": False,
            "pre_quant_scale": True,
        }
    return {"quant_algo": algorithm} | ({"group_size": NVFP4_GROUP} if algorithm == "NVFP4" else {})


def resolve_quantization(
    quantization: ModelQuantization | None,
    layout: CheckpointLayout,
    source: SourceTensors,
    *,
    on_load: str | None = None,
    kv_cache: str | None = None,
) -> ResolvedQuantization:
    """Resolve the format of every matrix.

    Args:
        on_load: algorithm to quantize an unquantized model to (``FP8_PER_CHANNEL_PER_TOKEN``).
        kv_cache: ``FP8`` for a model that does not ask for it.

    Raises:
        ModelError: description and tensors disagree, or merged matrices differ.
        UsageError: layers excluded in one pipeline stage only, or ``on_load`` for a quantized model.
    """
    if on_load is not None:
        return _quantize_on_load(quantization, on_load, layout, kv_cache)
    algorithms = _resolve_by_module(layout, quantization, source)
    if quantization is None:
        return ResolvedQuantization({"kv_cache_quant_algo": kv_cache}, None, algorithms)
    experts = _resolve_expert_algorithms(layout, algorithms)
    used = {a for a in algorithms.values() if a is not None}
    group_size = _group_size(quantization, used)
    kv_cache = kv_cache or quantization.kv_cache
    keys: dict[str, Any] = {"kv_cache_quant_algo": kv_cache}
    if not used:
        return ResolvedQuantization(keys, None, algorithms)
    keys["quant_algo"] = quantization.algorithm
    if group_size is not None:
        keys["group_size"] = group_size
    if quantization.algorithm == "MIXED_PRECISION":
        if spared := sorted(name for name, a in experts.items() if a is None):
            raise ModelError(
                f"the experts of {spared[0]} are not quantized in a model of mixed precision; TensorRT-LLM "
                "builds experts that quant_cfg.json does not name with all of the model's formats at once",
                fix="quantize the experts, too, or use one algorithm and exclude them",
            )
        named = {**algorithms, **experts}
        layers = {name: _make_layer_entry(a, group_size) for name, a in sorted(named.items()) if a}
        quant_cfg = {
            "quant_algo": "MIXED_PRECISION",
            "kv_cache_quant_algo": kv_cache,
            "quantized_layers": layers,
        }
        return ResolvedQuantization(keys, quant_cfg, algorithms)
    if "AWQ" in quantization.algorithm:
        keys["pre_quant_scale"] = True
    if excluded := sorted(name for name, a in {**algorithms, **experts}.items() if a is None):
        keys["exclude_modules"] = [*load_table("number_formats")["defaultExclude"], *excluded]
    return ResolvedQuantization(keys, None, algorithms)


def _quantize_on_load(
    quantization: ModelQuantization | None, algorithm: str, layout: CheckpointLayout, kv_cache: str | None
) -> ResolvedQuantization:
    if quantization is not None:
        raise UsageError(
            f"--quantize {algorithm}: the model is {quantization.algorithm} already",
            fix="leave --quantize out, or pass the unquantized model",
        )
    return ResolvedQuantization(
        {"quant_algo": algorithm, "kv_cache_quant_algo": kv_cache},
        None,
        {linear.name: algorithm for linear in layout.linears() if linear.quantizable},
    )
