"""Rotary position embedding: base, scaling and rotated fraction, from wherever a config keeps them.

transformers 4 keeps ``rope_theta``, ``rope_scaling`` (type under ``type`` or ``rope_type``) and
``partial_rotary_factor`` at the top; transformers 5 keeps all of it in ``rope_parameters``, which wins over
a ``rope_theta`` at the top and is itself replaced by a ``rope_scaling`` (modeling_rope_utils.py,
RotaryEmbeddingConfigMixin.convert_rope_params_to_dict, transformers 5.14.1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enginix.errors import ModelError

TYPES = ("linear", "dynamic", "yarn", "llama3", "longrope")
_NOT_SCALING = ("rope_theta", "partial_rotary_factor")


@dataclass(frozen=True)
class Rope:
    """Rotary embedding as the model defines it.

    Attributes:
        base: theta.
        type: ``default`` or one of ``TYPES``.
        scaling: the scaling's own parameters with ``rope_type``; None where the type is ``default``.
        fraction: part of each head that is rotated (``partial_rotary_factor``), 0 < fraction ≤ 1.
    """

    base: float
    type: str
    scaling: Mapping[str, Any] | None
    fraction: float


def _number(value: Any, what: str, where: str) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value <= 0
    ):
        raise ModelError(
            f"{what} is {value!r}, not a positive number", where=where, fix="correct config.json"
        )
    return float(value)


def _factors(scaling: Mapping[str, Any], raw: Mapping[str, Any], where: str) -> None:
    for key in ("short_factor", "long_factor"):
        values = scaling.get(key)
        if not isinstance(values, list) or not values:
            raise ModelError(f"longrope's {key} is no list", where=where, fix="correct config.json")
        for value in values:
            _number(value, f"longrope's {key}", where)
    original = raw.get("original_max_position_embeddings", scaling.get("original_max_position_embeddings"))
    _number(original, "original_max_position_embeddings", where)


def read_rope(raw: Mapping[str, Any], where: str, *, default_base: float) -> Rope:
    """Reads the rotary embedding of a parsed ``config.json``.

    Args:
        default_base: the configuration class's own base, for configs that name none.

    Raises:
        ModelError: an unknown scaling type, parameters that are missing or no numbers, or one set per
            kind of layer (no architecture here has that).
    """
    found = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(found, dict):
        raise ModelError("rope parameters are not an object", where=where, fix="correct config.json")
    if found and all(isinstance(v, dict) for v in found.values()):
        raise ModelError(
            f"rope parameters differ by kind of layer ({', '.join(sorted(found))})",
            where=where,
            fix="no architecture of this converter has that; serve the model with the llmapi kind",
        )
    base = found.get("rope_theta", raw.get("rope_theta"))
    fraction = found.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    kind = found.get("rope_type", found.get("type")) or "default"
    if raw.get("model_type") == "phi3" and kind in ("su", "yarn"):
        kind = "longrope"  # names of the first Phi-3 releases; transformers renames them for Phi-3 alone
    scaling = {k: v for k, v in found.items() if k not in _NOT_SCALING}
    if kind == "default":
        scaling = {}
    elif kind not in TYPES:
        raise ModelError(
            f"rope scaling {kind!r} is unknown", where=where, fix=f"known: default, {', '.join(TYPES)}"
        )
    else:
        scaling["rope_type"] = kind
        if kind == "longrope":
            _factors(scaling, raw, where)
        else:
            _number(scaling.get("factor"), "rope scaling's factor", where)
        if kind == "dynamic" and scaling.get("alpha", 1.0) != 1.0:
            raise ModelError(
                f"dynamic rope scaling has alpha {scaling['alpha']!r}: TensorRT-LLM computes with it, "
                "transformers without, in this architecture",
                where=where,
                fix="if the model was trained with it, multiply rope_theta by alpha^(d/(d-2)), where d is "
                "the rotated size of a head, and remove alpha; if not, only remove it",
            )
    portion = 1.0 if fraction is None else _number(fraction, "partial_rotary_factor", where)
    if portion > 1:
        raise ModelError(
            f"partial_rotary_factor {portion} is above 1", where=where, fix="correct config.json"
        )
    return Rope(
        default_base if base is None else _number(base, "rope_theta", where), kind, scaling or None, portion
    )
