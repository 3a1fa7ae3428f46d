"""Read the rotary scaling of a checkpoint as TensorRT-LLM's loader does."""

from __future__ import annotations

import math
from typing import Any

from enginix.reference.executor_config import ExecutorConfigReader, Family

ROPE_TYPES = ("linear", "dynamic", "llama3", "yarn")
# Defaults of create_attention_const_params in TensorRT-LLM's layers/attention.py for absent keys; a key
# that it does not read (attention_factor, truncate) is not read here either.
_LOADER_DEFAULTS: dict[str, dict[str, float]] = {
    "linear": {"factor": 1.0},
    "dynamic": {"factor": 1.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {
        "factor": 1.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.0,
    },
}


def _parse_long_rope(reader: ExecutorConfigReader, rotary_dim: int) -> dict[str, Any]:
    original = reader.integer("original_max_position_embeddings", least=2)
    scaling: dict[str, Any] = {"rope_type": "longrope", "original_max_position_embeddings": original}
    for key in ("short_factor", "long_factor"):
        name = f"longrope_scaling_{key}s"
        factors = reader.raw.get(name)
        if not isinstance(factors, list) or len(factors) != rotary_dim // 2:
            raise reader.fail(f"{name} is not a list of {rotary_dim // 2} numbers")
        numbered = ExecutorConfigReader({f"{name}[{i}]": f for i, f in enumerate(factors)}, reader.where)
        scaling[key] = [numbered.number(each, least=1e-6, most=1e9) for each in numbered.raw]
    return scaling


def parse_rotary_scaling(
    reader: ExecutorConfigReader, family: Family, rotary_dim: int
) -> dict[str, Any] | None:
    """Return the scaling as TensorRT-LLM reads it, with every key, and its type under ``rope_type``.

    Raises:
        CheckpointError: an engine does not support the scaling.
    """
    position = reader.raw.get("position_embedding_type", "learned_absolute")
    block, factors = reader.part("rotary_scaling"), "longrope_scaling_short_factors" in reader.raw
    if family != "form" and position not in ("rope_gpt_neox", "long_rope"):
        raise reader.fail(f"position_embedding_type is {position!r}, not rope_gpt_neox or long_rope")
    if (position == "long_rope") != factors:
        state = "set" if factors else "missing"
        raise reader.fail(
            f"position_embedding_type is {position}, but longrope_scaling_short_factors is {state}"
        )
    if family != "phi3" and position == "long_rope":
        raise reader.fail("long_rope: only TensorRT-LLM's Phi-3 class passes it to its attention")
    if family == "phi3" and reader.raw.get("rotary_scaling") is not None:
        raise block.fail("TensorRT-LLM's Phi-3 class does not pass rotary_scaling to its attention")
    if position == "long_rope":
        return _parse_long_rope(reader, rotary_dim)
    if reader.raw.get("rotary_scaling") is None:
        return None
    kind = block.raw.get("type", block.raw.get("rope_type"))
    if not isinstance(kind, str) or kind not in _LOADER_DEFAULTS:
        raise block.fail(f"type {kind!r} has no table in TensorRT-LLM; known are {', '.join(ROPE_TYPES)}")
    scaling: dict[str, Any] = {"rope_type": kind}
    for key, default in _LOADER_DEFAULTS[kind].items():
        # The loader uses any mscale; for mscale_all_dim 0 it divides by one.
        least = -1e9 if key.startswith("mscale") else 1e-6
        scaling[key] = block.number(key, default, least=least, most=1e9)
    if kind == "dynamic":
        scaling["alpha"] = block.number("alpha", least=1e-6, most=1e9)  # the loader fails without it
    if (
        (kind == "dynamic" and rotary_dim < 4)
        or (kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"])
        or (kind == "yarn" and scaling["original_max_position_embeddings"] < 2)
        or (kind == "yarn" and reader.number("rotary_base", 10000.0) <= 1)
    ):
        raise block.fail(f"the formula of {kind} has no value for {scaling}")
    if kind == "yarn" and scaling["factor"] > 1:
        steepness = 0.1 * math.log(scaling["factor"])
        one, every = (scaling[key] * steepness + 1 for key in ("mscale", "mscale_all_dim"))
        if not every or not 1e-9 < one / every < 1e9:
            raise block.fail(f"the factor on cosine and sine is {one:g} / {every:g}")
    return scaling
