"""Compare the ``config.json`` that NVIDIA's runtime reads with the model, key by key.

The runtime takes sizes, rotary embedding, end tokens and the type of the KV cache from this file, which lies
beside the graph or the engine, and believes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from enginix.kinds.edgellm.errors import ExportError
from enginix.kinds.edgellm.source import ModelFacts
from enginix.kinds.edgellm.unsupported_models import compute_yarn_magnitude
from enginix.model import ModelConfig
from enginix.tables import load_table

_AGAIN = "export again; if it stays so, TensorRT Edge-LLM does not support this model"
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
            raise ExportError(
                f"{_ORIGINAL} is {json.dumps(original)}, the model's is {facts.model.rope.original}",
                where=where,
                fix=_AGAIN,
            )
        graph = {key: value for key, value in describe_runtime_config(facts).items() if key in _IN_THE_GRAPH}
        own = {**graph, "sliding_window_size": facts.model.sliding_window, **own}
    compare_runtime_config(own, facts, where)


def compare_runtime_config(exported: Mapping[str, Any], facts: ModelFacts, where: str) -> None:
    """Compare a parsed ``config.json`` with the model.

    Raises:
        ExportError: a key is missing, unknown, or has another value than the model.
    """
    expected = describe_runtime_config(facts)
    for key, value in expected.items():
        stated = exported.get(key)
        if key == "eos_token_id":
            stated = sorted(stated) if isinstance(stated, list) else stated
        if not _is_same(stated, value):
            raise ExportError(
                f"{key} is {json.dumps(exported.get(key))}, the model's is {json.dumps(value)}",
                where=where,
                fix=_AGAIN,
            )
    _compare_window(exported.get("sliding_window_size"), facts.model, where)
    _compare_rope(exported, facts.model, where)
    strange = sorted(set(exported) - set(expected) - {"rope_scaling", "sliding_window_size"})
    if strange:
        raise ExportError(
            f"{strange[0]} is {json.dumps(exported[strange[0]])}, which no model of this architecture has",
            where=where,
            fix=_AGAIN,
        )


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


def _compare_window(stated: Any, model: ModelConfig, where: str) -> None:
    if not is_window_right(stated, model):
        raise ExportError(
            f"sliding_window_size is {json.dumps(stated)}, the model's is {json.dumps(model.sliding_window)}",
            where=where,
            fix=_AGAIN,
        )


def _compare_rope(exported: Mapping[str, Any], model: ModelConfig, where: str) -> None:
    """Compare the scaling as the runtime reads it (collectRopeConfig) with the model's."""
    scaling = exported.get("rope_scaling")
    scaling = scaling if isinstance(scaling, dict) else {}
    stated_type = scaling.get("type", scaling.get("rope_type", "default"))
    if stated_type != model.rope.type:
        raise ExportError(
            f"rotary embedding is of type {stated_type}, the model's of {model.rope.type}",
            where=where,
            fix=_AGAIN,
        )
    rope = model.rope
    expected: dict[str, Any] = {"mrope_section": None}
    if rope.type in ("llama3", "yarn"):
        assert rope.scaling is not None
        expected |= {"factor": rope.scaling.get("factor"), "original_max_position_embeddings": rope.original}
    if rope.type == "llama3":
        assert rope.scaling is not None
        expected |= {key: rope.scaling.get(key) for key in ("low_freq_factor", "high_freq_factor")}
    if rope.type == "yarn":
        assert rope.scaling is not None
        expected |= {
            "beta_fast": rope.scaling.get("beta_fast") or 32,
            "beta_slow": rope.scaling.get("beta_slow") or 1,
        }
    if rope.type == "dynamic":
        expected["alpha"] = None
    # The runtime's own defaults of keys that may be missing.
    defaults = {"beta_fast": 32, "beta_slow": 1}
    for key, value in expected.items():
        stated = scaling.get(key, defaults.get(key))
        same = (
            stated in (None, 1)
            if key == "alpha"
            else stated is None
            if value is None
            else isinstance(stated, (int, float)) and math.isclose(stated, value, rel_tol=_SAME)
        )
        if not same:
            raise ExportError(
                f"{key} of the rotary embedding is {json.dumps(stated)}, the model's is {json.dumps(value)}",
                where=where,
                fix=_AGAIN,
            )
    if rope.type == "yarn" and not math.isclose(
        compute_yarn_magnitude(scaling), rope.magnitude, rel_tol=_SAME
    ):
        raise ExportError(
            f"attention_factor of the rotary embedding is {compute_yarn_magnitude(scaling):g}, "
            f"the model's is {rope.magnitude:g}",
            where=where,
            fix=_AGAIN,
        )
    theta = scaling.get("rope_theta")
    if theta is not None and not _is_same(theta, rope.base):
        raise ExportError(
            f"rope_theta of the rotary embedding is {json.dumps(theta)}, the model's is {rope.base:g}",
            where=where,
            fix=_AGAIN,
        )
