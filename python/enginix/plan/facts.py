"""The plan that evaluation makes: from a lock's facts and file sizes, without a header."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enginix.errors import ModelError
from enginix.plan import arithmetic, edgellm
from enginix.plan.arithmetic import Gpu, Sizes
from enginix.plan.planner import Asked, Build, Plan, check_asked, edgellm_limits, format_obstacles, limits_of
from enginix.tables import table

NEEDED = (
    "layers", "heads", "kvHeads", "headSize", "hiddenSize", "intermediateSize", "vocabulary", "context",
)  # fmt: skip


def from_facts(
    facts: Mapping[str, Any], files: Mapping[str, int], gpu: Gpu, asked: Asked, source: str
) -> Plan:
    """Plans as ``nix/check/plan.nix`` does.

    Weights are the mean over the ranks, so what does not fit here does not fit; what fits here may not.

    Args:
        facts: a lock's ``model``.
        files: path → bytes.

    Raises:
        ModelError: a fact that the arithmetic needs is missing.
    """
    check_asked(asked)
    if facts.get("architecture") in table("formats")["kvNotByHeads"]["architectures"]:
        raise ModelError(
            f"a lock does not tell the KV cache of a token of {facts['architecture']}",
            where=source,
            fix="leave --offline out",
        )
    sizes, total, tied = _sizes(facts, weight_bytes(files), source)
    weights = arithmetic.estimate(total, sizes, tied)
    if asked.kind == "edgellm":
        return _edgellm(facts, files, gpu, asked, source, sizes, total, weights)
    limits = limits_of(sizes, asked)
    found = arithmetic.memory(sizes, limits, gpu, weights)
    return Plan(
        source=source,
        kind=asked.kind,
        gpu=gpu,
        sizes=sizes,
        limits=limits,
        memory=found,
        exact=False,
        build=Build(sum(files.values()), total, total, 4 * found.weights, found.weights, found.weights),
        obstacles=tuple(format_obstacles(sizes, gpu, asked.kind)),
        changes=() if found.fits else tuple(arithmetic.changes(sizes, limits, gpu, weights)),
        notes=("from the lock alone: weights of a rank are the mean, a lower bound",),
    )


def _edgellm(
    facts: Mapping[str, Any],
    files: Mapping[str, int],
    gpu: Gpu,
    asked: Asked,
    source: str,
    sizes: Sizes,
    total: int,
    weights: arithmetic.Weights,
) -> Plan:
    limits = edgellm_limits(asked)
    found = edgellm.memory(sizes, limits, gpu, weights)
    return Plan(
        source=source,
        kind="edgellm",
        gpu=gpu,
        sizes=sizes,
        limits=limits,
        memory=found,
        exact=False,
        build=Build(sum(files.values()), total, 0, 0, found.weights + found.workspace, 0),
        obstacles=tuple(edgellm.obstacles(facts.get("architecture"), sizes.quantization, gpu)),
        changes=() if found.fits else tuple(edgellm.changes(sizes, limits, gpu, weights)),
        notes=("from the lock alone: weights are the size of the files, a lower bound",),
    )


def weight_bytes(files: Mapping[str, int]) -> int:
    """Bytes of a model's weights among its files (path → size).

    Files named model*.safetensors, as transformers reads them; where there are none, every safetensors file
    beside config.json. Some repositories hold the weights a second time in another layout.
    """
    top = [p for p in files if p.endswith(".safetensors") and "/" not in p]
    chosen = [p for p in top if p.startswith("model")] or top
    return sum(files[p] for p in chosen)


def _sizes(facts: Mapping[str, Any], total: int, source: str) -> tuple[Sizes, int, bool]:
    """Sizes, bytes of the weights as a checkpoint holds them, and whether the embedding is the head, too."""
    dtype, cache = facts.get("dtype"), facts.get("kvCacheQuantization")
    formats = table("formats")["kvCache"]
    missing = [n for n in NEEDED if not isinstance(facts.get(n), int)]
    missing += ["dtype"] if dtype not in arithmetic.ELEMENT_BYTES else []
    missing += ["kvCacheQuantization"] if cache is not None and cache not in formats else []
    missing += ["weights"] if total == 0 else []
    if missing:
        raise ModelError(
            f"the lock does not tell the model's {missing[0]}", where=source, fix="leave --offline out"
        )
    if dtype == "float32":  # written as float16, as TensorRT-LLM does
        dtype, total = "float16", total // 2
    element = arithmetic.ELEMENT_BYTES[str(dtype)]
    sizes = Sizes(
        layers=facts["layers"],
        heads=facts["heads"],
        kv_heads=facts["kvHeads"],
        head_size=facts["headSize"],
        hidden_size=facts["hiddenSize"],
        mlp_width=facts["intermediateSize"],
        vocabulary=facts["vocabulary"],
        context=facts["context"],
        element_bytes=element,
        quantization=facts.get("quantization") or "NO_QUANT",
        kv_bits=formats[cache]["bits"] if cache else 8 * element,
    )
    return sizes, total, facts.get("tiedEmbeddings") is True
