"""The memory plan of evaluation: from a lock's metadata and file sizes, without headers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enginix.errors import ModelError
from enginix.kinds.planning.checkpoint_refusal import LOCK_LACKS_VALUES, explain_lock_refusal
from enginix.kinds.planning.obstacles import (
    find_format_obstacles,
    find_model_obstacles,
    find_window_obstacles,
    list_changed_options,
    list_gpu_notes,
)
from enginix.kinds.planning.plan_record import (
    CountedModel,
    KindPlanner,
    MemoryPlan,
    PlanCertainty,
    PlanRequest,
)
from enginix.kinds.planning.planner import (
    check_plan_request,
    estimate_build_needs,
    find_kv_certainty,
    resolve_plan_limits,
)
from enginix.kinds.registry import find_kind, load_hook
from enginix.machine.gpu_table import TargetGpu
from enginix.memory_plan import arithmetic
from enginix.memory_plan.arithmetic import ELEMENT_BYTES, ModelSizes
from enginix.model.attention_window import WINDOW_KEY
from enginix.model.config_rules import explain_other_class
from enginix.model.context_length import PYTORCH_CONTEXT_KEY
from enginix.model.number_formats import read_kv_cache_bits
from enginix.tables import load_table

# Size → the lock's key of it.
_SIZES = {
    "layers": "layers", "heads": "heads", "kv_heads": "kvHeads", "head_size": "headSize",
    "hidden_size": "hiddenSize", "mlp_width": "intermediateSize", "vocabulary": "vocabulary",
    "context": "context",
}  # fmt: skip
NEEDED_KEYS = tuple(_SIZES.values())


def plan_from_lock(
    metadata: Mapping[str, Any], files: Mapping[str, int], gpu: TargetGpu, request: PlanRequest, source: str
) -> MemoryPlan:
    """Plan memory as ``nix/check/plan.nix`` does.

    Weights are the mean over the ranks, a lower bound: a model that does not fit here does not fit, but one
    that fits here may still not fit.

    Args:
        metadata: a lock's ``model``.
        files: path → bytes.

    Raises:
        ModelError: a value that the arithmetic needs is missing.
    """
    check_plan_request(request)
    if metadata.get("architecture") in load_table("memory_constants")["kvNotByHeads"]["architectures"]:
        raise ModelError(
            f"a lock does not have the KV cache size of a token for {metadata['architecture']}",
            where=source,
            fix="leave --offline out",
        )
    kind = find_kind(request.kind)
    sizes, total, tied = _read_sizes(metadata, count_weight_bytes(files), source, kind.built_from)
    weights = arithmetic.estimate_weights(total, sizes, tied)
    if kind.memory_plan is not None:
        kind_planner: KindPlanner = load_hook(kind.memory_plan)
        counted = CountedModel(source, sum(files.values()), sizes, total, weights)
        return kind_planner.plan_lock(metadata, gpu, request, counted)
    windows = read_locked_windows(metadata)
    limits = resolve_plan_limits(sizes, request, windows)
    memory = arithmetic.compute_memory(sizes, limits, gpu, weights)
    notes = ["from the lock alone: weights of a rank are the mean, a lower bound"]
    notes += list_gpu_notes(sizes, gpu, request.kind)
    architecture, model_type = metadata.get("architecture"), metadata.get("modelType")
    if kind.built_from != "model":
        notes.append(LOCK_LACKS_VALUES)
    elif other := explain_other_class(architecture, model_type):
        notes.append(f"{other[0]} (fix: {other[1]})")
    if refusal := explain_lock_refusal(kind, architecture, model_type):
        obstacles = [refusal]
    else:  # locks need not have the architecture
        method = metadata.get("quantizationMethod")
        verdict = find_model_obstacles(kind.name, architecture, sizes.quantization, method)
        obstacles = verdict if architecture else []
    notes += list_changed_options(request, limits)
    if limits.max_seq_len > sizes.context:
        notes.append(f"max_seq_len {limits.max_seq_len} exceeds the model's context of {sizes.context}")
    return MemoryPlan(
        source=source,
        kind=request.kind,
        gpu=gpu,
        sizes=sizes,
        limits=limits,
        memory=memory,
        certainty=PlanCertainty("lower bound", find_kv_certainty(architecture, windows)),
        build=estimate_build_needs(request.kind, sum(files.values()), total, memory, limits),
        obstacles=(
            *obstacles,
            *find_format_obstacles(sizes, gpu, request.kind),
            *find_window_obstacles(request, windows),
        ),
        changes=() if memory.fits else tuple(arithmetic.find_changes(sizes, limits, gpu, weights)),
        notes=tuple(notes),
    )


def read_locked_windows(metadata: Mapping[str, Any]) -> list[int] | None:
    """Return the windows of a lock's ``model``; None for a lock of an older enginix, which has none."""
    windows = metadata.get(WINDOW_KEY)
    if not isinstance(windows, list) or not all(type(w) is int and w > 0 for w in windows):
        return None
    return windows


def count_weight_bytes(files: Mapping[str, int]) -> int:
    """Count the bytes of a model's weights among its files (path → size).

    Files named model*.safetensors count, as transformers reads them; without such files, every safetensors
    file beside config.json. Some repositories hold the weights a second time in another layout.
    """
    top = [p for p in files if p.endswith(".safetensors") and "/" not in p]
    chosen = [p for p in top if p.startswith("model")] or top
    return sum(files[p] for p in chosen)


def _read_sizes(
    metadata: Mapping[str, Any], total: int, source: str, built_from: str
) -> tuple[ModelSizes, int, bool]:
    """Return the model's sizes, the bytes of its weights in a checkpoint, and whether embedding and head are
    tied."""
    dtype, cache = metadata.get("dtype"), metadata.get("kvCacheQuantization")
    cache_bits = read_kv_cache_bits()
    missing = [n for n in NEEDED_KEYS if not isinstance(metadata.get(n), int)]
    missing += ["dtype"] if dtype not in ELEMENT_BYTES else []
    missing += ["kvCacheQuantization"] if cache is not None and cache not in cache_bits else []
    missing += ["weights"] if total == 0 else []
    if missing:
        raise ModelError(
            f"the lock does not have the model's {missing[0]}", where=source, fix="leave --offline out"
        )
    if dtype == "float32":  # written as float16, as TensorRT-LLM does
        dtype, total = "float16", total // 2
    element = ELEMENT_BYTES[str(dtype)]
    counts = {size: metadata[key] for size, key in _SIZES.items()}
    if built_from == "model":
        counts["context"] = metadata.get(PYTORCH_CONTEXT_KEY, counts["context"])
    sizes = ModelSizes(
        **counts,
        element_bytes=element,
        quantization=metadata.get("quantization") or "NO_QUANT",
        kv_bits=cache_bits[cache] if cache else 8 * element,
    )
    return sizes, total, metadata.get("tiedEmbeddings") is True
