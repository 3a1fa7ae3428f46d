"""Write rope scaling in the keys that TensorRT-LLM reads, so that its tables are the model's.

The loader's defaults (architectures.json, rope.types) are not those of transformers: a key is written if the
default would give another value. A parameter without a key is refused.
"""

from __future__ import annotations

import math
from typing import Any

from enginix.model import ModelConfig
from enginix.model.model_errors import make_unconvertible_error
from enginix.tables import load_table


def describe_rotary_scaling(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of a checkpoint's ``config.json`` that describe the model's rope scaling.

    Raises:
        ModelError: TensorRT-LLM has no key for a parameter; it is named.
    """
    rope = model.rope
    if rope.scaling is None:
        return {"rotary_scaling": None}
    if rope.type == "longrope":
        return {"rotary_scaling": None, **_describe_longrope(model)}
    loader = load_table("architectures")["rope"]["types"][rope.type]["loader"]
    parameters: dict[str, Any] = {}
    if rope.type == "dynamic":
        # TensorRT-LLM's tables are built with base * alpha^(dim/(dim-2)) and need the key; a model without
        # it has the plain base up to max_position_embeddings, which is alpha 1.
        parameters["alpha"] = rope.scaling.get("alpha", 1.0)
    if rope.original is not None:
        parameters["original_max_position_embeddings"] = as_whole_number(rope.original)
    if rope.type == "yarn":
        parameters |= _describe_yarn(model)
    scaling = {k: v for k, v in rope.scaling.items() if k == "rope_type" or k in loader or k == "factor"}
    for key, value in parameters.items():
        if scaling.get(key) != value and (key in scaling or loader[key] != value):
            scaling[key] = value
    return {"rotary_scaling": scaling}


def as_whole_number(number: float) -> int | float:
    return int(number) if number == int(number) else number


def _compute_magnitude(factor: float, one: float, every: float) -> float:
    """Return TensorRT-LLM's factor on cosine and sine (yarn_get_mscale)."""
    if factor <= 1:
        return 1.0
    return (0.1 * one * math.log(factor) + 1) / (0.1 * every * math.log(factor) + 1)


def _describe_yarn(model: ModelConfig) -> dict[str, Any]:
    rope, scaling = model.rope, model.rope.scaling or {}
    assert rope.original is not None
    factor = scaling.get("factor") or model.max_position_embeddings / rope.original
    parameters: dict[str, Any] = {
        "factor": factor,
        # transformers replaces 0 and null by the default, too.
        "beta_fast": scaling.get("beta_fast") or 32.0,
        "beta_slow": scaling.get("beta_slow") or 1.0,
    }
    one, every = scaling.get("mscale", 1.0), scaling.get("mscale_all_dim", 0.0)
    given = isinstance(one, (int, float)) and isinstance(every, (int, float))
    if given and math.isclose(_compute_magnitude(factor, one, every), rope.magnitude, rel_tol=1e-9):
        return parameters
    if factor <= 1:
        raise make_unconvertible_error(
            f"yarn rope scaling: attention_factor is {rope.magnitude:g}, and TensorRT-LLM has no factor on "
            f"cosine and sine where factor is {factor:g}",
            str(model.directory),
        )
    # TensorRT-LLM reads no attention_factor: mscale is solved for it.
    return parameters | {"mscale": (rope.magnitude - 1) / (0.1 * math.log(factor)), "mscale_all_dim": 0.0}


def _describe_longrope(model: ModelConfig) -> dict[str, Any]:
    rope, scaling = model.rope, model.rope.scaling or {}
    assert rope.original is not None
    ratio = model.max_position_embeddings / rope.original
    loader = math.sqrt(1 + math.log(ratio) / math.log(rope.original)) if ratio > 1 else 1.0
    if not math.isclose(loader, rope.magnitude, rel_tol=1e-6):
        key = "attention_factor" if scaling.get("attention_factor") is not None else "factor"
        raise make_unconvertible_error(
            f"longrope's {key} is {scaling.get(key)!r}: cosine and sine times {rope.magnitude:g}, where "
            f"TensorRT-LLM always takes {loader:g}, from max_position_embeddings and "
            "original_max_position_embeddings",
            str(model.directory),
        )
    return {
        "position_embedding_type": "long_rope",
        "original_max_position_embeddings": as_whole_number(rope.original),
        "longrope_scaling_short_factors": list(scaling["short_factor"]),
        "longrope_scaling_long_factors": list(scaling["long_factor"]),
    }
