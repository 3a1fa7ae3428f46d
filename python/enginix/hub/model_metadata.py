"""The metadata of a model that evaluation needs, from its small configuration files.

Names are those of a lock's ``model``. A value that the files do not give is absent, never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from enginix.errors import LockError, ModelError
from enginix.model.attention_window import WINDOW_KEY, find_window_pattern
from enginix.model.class_defaults import EXPERT_COUNT_KEYS, fill_absent_sizes
from enginix.model.context_length import PYTORCH_CONTEXT_KEY, read_model_context, read_pytorch_context
from enginix.model.family_config import find_kv_heads, read_family_sizes
from enginix.model.family_rows import list_family_rows
from enginix.model.jsonfile import parse_object
from enginix.model.quantization import (
    canonical_algorithm,
    find_contradiction,
    find_quantization_method,
    read_inline_kv_cache,
)
from enginix.tables import load_table

CONFIG = "config.json"
MODELOPT = "hf_quant_config.json"
FILES = (CONFIG, MODELOPT)

# key of a lock's ``model`` → names in config.json; the first that exists counts
INTEGERS = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head"),
    "headSize": ("head_dim", "kv_channels"),
    "hiddenSize": ("hidden_size", "n_embd"),
    "intermediateSize": ("intermediate_size", "n_inner", "ffn_hidden_size"),
    "vocabulary": ("vocab_size",),
    "experts": EXPERT_COUNT_KEYS,
    "expertIntermediateSize": ("moe_intermediate_size",),
    "expertsPerToken": ("num_experts_per_tok", "experts_per_token"),
}
# Keys of older locks that are ignored: a window that the model may not use (use_sliding_window);
# attentionWindow has those that it uses.
OBSOLETE_KEYS = frozenset({"slidingWindow"})


def extract_model_metadata(files: Mapping[str, bytes], where: str) -> dict[str, Any]:
    """Return the metadata found in the content of ``FILES``, of which any may be missing.

    Raises:
        ModelError: one of them is not a JSON object.
    """
    if CONFIG not in files:
        return {}
    top = parse_object(files[CONFIG], f"{where}: {CONFIG}")
    # Multimodal models keep the language model's sizes below text_config.
    text = top.get("text_config")
    config = fill_absent_sizes({**top, **text} if isinstance(text, dict) else top)
    facts: dict[str, Any] = {}
    names = top.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        facts["architecture"] = names[0]
    if isinstance(top.get("model_type"), str):
        facts["modelType"] = top["model_type"]
    for fact, keys in INTEGERS.items():
        value = next((config[k] for k in keys if type(config.get(k)) is int), None)
        if value is not None and 0 <= value < 1 << 53:
            facts[fact] = value
    context, clipped = read_model_context(config), read_pytorch_context(config)
    if context is not None:
        facts["context"] = context
    if clipped is not None and clipped != context:
        facts[PYTORCH_CONTEXT_KEY] = clipped
    facts |= _read_family_facts(config, facts.get("architecture"))
    kv_heads = find_kv_heads(config, facts.get("architecture"))
    if kv_heads is not None and 0 <= kv_heads < 1 << 53:
        facts["kvHeads"] = kv_heads
    _add_derived_sizes(facts, config)
    dtype = config.get("dtype") or config.get("torch_dtype")
    if isinstance(dtype, str):
        facts["dtype"] = dtype.removeprefix("torch.")
    if isinstance(config.get("tie_word_embeddings"), bool):
        facts["tiedEmbeddings"] = config["tie_word_embeddings"]
    elif "tie_word_embeddings" not in config and _ties_by_default(facts.get("architecture")):
        facts["tiedEmbeddings"] = True
    if (windows := find_window_pattern(config)) is not None:
        facts[WINDOW_KEY] = windows
    facts.update(_read_quantization_names(config, files, where))
    if isinstance(top.get("auto_map"), dict) and top["auto_map"]:
        facts["remoteCode"] = True
    return {k: v for k, v in facts.items() if not isinstance(v, str) or (v.isprintable() and len(v) <= 200)}


_FAMILY_FACTS = {
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kvHeads": "num_key_value_heads",
    "headSize": "head_size",
    "hiddenSize": "hidden_size",
    "intermediateSize": "intermediate_size",
    "vocabulary": "vocab_size",
    "experts": "experts.count",
    "expertsPerToken": "experts.top_k",
}


def _read_family_facts(config: Mapping[str, Any], architecture: str | None) -> dict[str, int]:
    """Return the sizes of an architecture that names them in its own way, by its row of family_rows.json."""
    row = list_family_rows().get(architecture or "")
    if row is None:
        return {}
    sizes = read_family_sizes(config, row)
    facts = {fact: sizes[name] for fact, name in _FAMILY_FACTS.items() if name in sizes}
    width = sizes.get("experts.width", facts.get("intermediateSize"))
    return facts | ({"expertIntermediateSize": width} if "experts" in facts and width else {})


def _ties_by_default(architecture: str | None) -> bool:
    row = list_family_rows().get(architecture or "")
    return row is not None and row["defaults"].get("tie_word_embeddings") is True


def require_metadata(locked: Mapping[str, Any], files: Mapping[str, bytes], where: str) -> None:
    """Compare a lock's metadata with the configuration that it pins.

    A value that an older enginix did not write may be missing.

    Args:
        files: content of ``FILES``, as far as the lock has them.

    Raises:
        LockError: a value differs from the configuration.
        ModelError: the configuration is not a JSON object.
    """
    expected = {k: v for k, v in locked.items() if k not in OBSOLETE_KEYS}
    derived = extract_model_metadata(files, where) if expected else {}
    for name, value in sorted(expected.items()):
        known = derived.get(name)
        # As text: JSON's true is not 1, and 4.0 not 4.
        if name not in derived or json.dumps(known) != json.dumps(value):
            derived_text = f"has {ascii(known)[:100]}" if name in derived else "has no such value"
            raise LockError(
                f"model.{name} is {ascii(value)[:100]}, the pinned configuration {derived_text}",
                where=where,
                fix="write the lock again with `enginix lock`, and ask who changed it",
            )


def _add_derived_sizes(facts: dict[str, Any], config: Mapping[str, Any]) -> None:
    """Add the numbers that follow from others: as many KV heads as heads, and their size.

    Layers that keep no keys and values by heads get no values; a null of an unknown class is not replaced by
    a number of KV heads.
    """
    rows, listed = (
        load_table("architectures")["architectures"],
        load_table("memory_constants")["kvNotByHeads"]["architectures"],
    )
    architecture, heads = facts.get("architecture"), facts.get("heads")
    if not heads or architecture in listed or config.get("kv_lora_rank"):
        return
    if architecture in rows or "num_key_value_heads" not in config:
        facts.setdefault("kvHeads", heads)
    if "hiddenSize" in facts and facts["hiddenSize"] % heads == 0:
        facts.setdefault("headSize", facts["hiddenSize"] // heads)


def _read_quantization_names(
    config: Mapping[str, Any], files: Mapping[str, bytes], where: str
) -> dict[str, Any]:
    """Return ``quantization`` and ``kvCacheQuantization``: the algorithm's name, or None.

    As in conversion, ModelOpt's own file alone counts, if it exists.
    """
    described = config.get("quantization_config")
    inline = described if isinstance(described, dict) else {}
    quantization: dict[str, Any] = {}
    if MODELOPT in files:
        sidecar = parse_object(files[MODELOPT], f"{where}: {MODELOPT}")
        quant, producer = sidecar.get("quantization"), sidecar.get("producer")
        if not isinstance(quant, dict):
            raise ModelError("no quantization object", where=f"{where}: {MODELOPT}", fix="report it upstream")
        algorithm, cache = quant.get("quant_algo"), quant.get("kv_cache_quant_algo")
        if isinstance(producer, dict) and isinstance(producer.get("name"), str):
            version = producer.get("version")
            quantization["quantizer"] = (
                f"{producer['name']} {version}" if isinstance(version, str) else producer["name"]
            )
    else:
        algorithm = inline.get("quant_algo") or inline.get("quant_method")
        if described is not None and not isinstance(described, dict):
            algorithm = described
        cache = read_inline_kv_cache(inline)
        method = find_quantization_method(inline)
        if method is None and inline.get("quant_algo"):
            method = "unknown"  # as conversion refuses it
        if isinstance(method, str) and (inline.get("quant_method") or method == "unknown"):
            # "fp8" alone would read as ModelOpt's FP8; the names are those of number_formats.json.
            quantization["quantizationMethod"] = (
                "fp8-block" if method == "fp8" and inline.get("weight_block_size") else method
            )
    # What is no name is no unquantized model, either: conversion refuses it.
    name = canonical_algorithm(algorithm) if isinstance(algorithm, str) else "UNKNOWN"
    quantization["quantization"] = None if algorithm is None or name == "NO_QUANT" else name
    quantization["kvCacheQuantization"] = cache.upper() if isinstance(cache, str) else None
    return quantization


def find_quantization_contradiction(files: Mapping[str, bytes], where: str) -> str | None:
    """Return how the content of ``FILES`` contradicts itself, for which conversion refuses the model."""
    if CONFIG not in files or MODELOPT not in files:
        return None
    sidecar, config = (parse_object(files[name], f"{where}: {name}") for name in (MODELOPT, CONFIG))
    inline = config.get("quantization_config")
    contradiction = find_contradiction(sidecar, inline if isinstance(inline, dict) else {})
    return f"{MODELOPT}: {contradiction[0]}; {contradiction[1]}" if contradiction else None
