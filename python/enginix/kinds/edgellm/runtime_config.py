"""Compare the ``config.json`` that NVIDIA's runtime reads with the model, key by key.

The runtime takes sizes, rotary embedding, end tokens and the type of the KV cache from this file, which lies
beside the graph or the engine, and believes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from enginix.kinds.edgellm.errors import make_mismatch, refuse_differences
from enginix.kinds.edgellm.source import ModelFacts
from enginix.kinds.edgellm.unsupported_models import compute_yarn_magnitude
from enginix.model import ModelConfig, ModelRope
from enginix.tables import load_table

_ORIGINAL = "original_max_position_embeddings"
# What the direct builder leaves out of an engine's file: its graph has them as constants and attributes.
_IN_THE_GRAPH = frozenset({
    "rms_norm_eps", "attention_scaling", "use_vision_bidirectional_attention", "sliding_window_size",
})  # fmt: skip
_ENGINE_KEYS = {
    # NVIDIA's cpp/builder/builderUtils.cpp, saveConfigWithBuilderInfo: the export's file, and this key.
    "onnx": frozenset({"builder_config"}),
    "direct": frozenset({
        "builder_config", "checkpoint_weight_bindings", "checkpoint_identity", "checkpoint_dir",
    }),
}  # fmt: skip
_SAME = 1e-6  # relative; the runtime reads numbers as float32


def describe_runtime_config(facts: ModelFacts) -> dict[str, Any]:
    """Return what the file must say of a model, without the rotary embedding's scaling."""
    model = facts.model
    expected: dict[str, Any] = {
        "model": model.model_type,
        "spec_decode_type": "none",
        "engine_role": "llm",
        "edgellm_version": load_table("edgellm")["version"],
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "max_position_embeddings": model.max_position_embeddings,
        "rope_theta": model.rope.base,
        "partial_rotary_factor": 1.0,
        "rms_norm_eps": model.norm_epsilon,
        "attention_scaling": 1 / math.sqrt(model.head_dim),
        "kv_cache_dtype": "fp8" if facts.kv_cache == "FP8" else "fp16",
        "num_deepstack_features": 0,
        "use_vision_bidirectional_attention": False,
        "ple_enabled": False,
        "num_ple_inputs": 0,
        "ple_hidden_size": 0,
    }
    if facts.end_tokens:
        expected["eos_token_id"] = sorted(facts.end_tokens)
    return expected


def compare_engine_config(built: Mapping[str, Any], facts: ModelFacts, builder: str, where: str) -> None:
    """Compare the ``config.json`` of a built engine with the model, but for its builder's own keys.

    Args:
        builder: ``direct``, whose file has fewer keys of the model, or ``onnx``, whose file is the export's.

    Raises:
        ExportError: a key is missing, unknown, or has another value than the model.
    """
    own = {key: value for key, value in built.items() if key not in _ENGINE_KEYS[builder]}
    if builder == "direct":
        original = own.pop(_ORIGINAL, None)
        if original is not None and original != facts.model.rope.original:
            stated = f"{_ORIGINAL} is {json.dumps(original)}"
            raise make_mismatch(f"{stated}, the model's is {facts.model.rope.original}", where)
        graph = {key: value for key, value in describe_runtime_config(facts).items() if key in _IN_THE_GRAPH}
        own = {**graph, "sliding_window_size": facts.model.sliding_window, **own}
    compare_runtime_config(own, facts, where)


def compare_runtime_config(exported: Mapping[str, Any], facts: ModelFacts, where: str) -> None:
    """Compare a parsed ``config.json`` with the model.

    Raises:
        ExportError: a key is missing, unknown, or has another value than the model.
    """
    refuse_differences(_find_config_differences(exported, facts), where)


def _find_config_differences(exported: Mapping[str, Any], facts: ModelFacts) -> Iterator[str]:
    expected = describe_runtime_config(facts)
    for key, value in expected.items():
        stated = exported.get(key)
        if key == "eos_token_id":
            stated = sorted(stated) if isinstance(stated, list) else stated
        if not _is_same(stated, value):
            yield f"{key} is {json.dumps(exported.get(key))}, the model's is {json.dumps(value)}"
    window, model_window = exported.get("sliding_window_size"), facts.model.sliding_window
    if not is_window_right(window, facts.model):
        yield f"sliding_window_size is {json.dumps(window)}, the model's is {json.dumps(model_window)}"
    yield from _find_rope_differences(exported, facts.model.rope)
    for key in sorted(set(exported) - set(expected) - {"rope_scaling", "sliding_window_size"}):
        yield f"{key} is {json.dumps(exported[key])}, which no model of this architecture has"


def _is_same(stated: Any, value: Any) -> bool:
    if isinstance(value, float) and isinstance(stated, (int, float)) and not isinstance(stated, bool):
        return math.isclose(stated, value, rel_tol=_SAME)
    return type(stated) is type(value) and bool(stated == value)


def is_window_right(stated: Any, model: ModelConfig) -> bool:
    """Tell whether a layer's window is the model's; -1 or None stand for no window."""
    window = model.sliding_window
    if window is not None:
        return bool(stated == window)
    return stated in (None, -1) or (isinstance(stated, int) and stated >= model.max_position_embeddings)


def _find_rope_differences(exported: Mapping[str, Any], rope: ModelRope) -> Iterator[str]:
    """Yield differences of the scaling, as the runtime reads it (collectRopeConfig), from the model's."""
    scaling = exported.get("rope_scaling")
    scaling = scaling if isinstance(scaling, dict) else {}
    parameters = rope.scaling or {}
    stated_type = scaling.get("type", scaling.get("rope_type", "default"))
    if stated_type != rope.type:
        yield f"rotary embedding is of type {stated_type}, the model's of {rope.type}"
    expected: dict[str, Any] = {"mrope_section": None}
    if rope.type in ("llama3", "yarn"):
        expected |= {"factor": parameters.get("factor"), "original_max_position_embeddings": rope.original}
    if rope.type == "llama3":
        expected |= {key: parameters.get(key) for key in ("low_freq_factor", "high_freq_factor")}
    # The runtime's own defaults of keys that may be missing.
    defaults = {"beta_fast": 32, "beta_slow": 1}
    if rope.type == "yarn":
        expected |= {key: parameters.get(key) or default for key, default in defaults.items()}
    if rope.type == "dynamic":
        expected["alpha"] = None
    for key, value in expected.items():
        stated = scaling.get(key, defaults.get(key))
        if value is None:
            same = stated is None or (key == "alpha" and stated == 1)
        else:
            same = isinstance(stated, (int, float)) and math.isclose(stated, value, rel_tol=_SAME)
        if not same:
            yield f"{key} of the rotary embedding is {json.dumps(stated)}, the model's is {json.dumps(value)}"
    if rope.type == "yarn":
        magnitude = compute_yarn_magnitude(scaling)
        if not math.isclose(magnitude, rope.magnitude, rel_tol=_SAME):
            name = "attention_factor of the rotary embedding"
            yield f"{name} is {magnitude:g}, the model's is {rope.magnitude:g}"
    theta = scaling.get("rope_theta")
    if theta is not None and not _is_same(theta, rope.base):
        name = "rope_theta of the rotary embedding"
        yield f"{name} is {json.dumps(theta)}, the model's is {rope.base:g}"
