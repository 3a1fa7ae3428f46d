"""The rotation table that the runtime feeds to an exported graph, from the export's own config.json.

Formulas: transformers 5.14.1, ``modeling_rope_utils.py``. ``dynamic`` does not stretch within
``max_position_embeddings``, beyond which Edge-LLM does not take it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from enginix.errors import GateError
from enginix.kinds.edgellm.execution.plugin_nodes import Array
from enginix.model.rope import ModelRope, read_rope
from enginix.tables import load_table


def read_exported_rope(config: Mapping[str, Any], architecture: str, where: str) -> ModelRope:
    """Read the rotary embedding of an exported config.json by the reader of models.

    Raises:
        ModelError: the parameters are unknown or invalid.
    """
    row: Mapping[str, Any] = load_table("architectures")["architectures"][architecture]
    return read_rope(config, where, row=row, head_dim=config["head_dim"])


def _compute_yarn(rope: ModelRope, inverse: Array, rotated: int, original: float) -> Array:
    scaling = rope.scaling or {}

    def turns_at(rotations: float) -> float:
        return rotated * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.base))

    low = max(math.floor(turns_at(scaling.get("beta_fast") or 32)), 0)
    high = min(math.ceil(turns_at(scaling.get("beta_slow") or 1)), rotated - 1)
    span = high - low if high != low else 0.001
    ramp = np.clip((np.arange(rotated // 2) - low) / span, 0, 1)
    return np.asarray(inverse / scaling["factor"] * ramp + inverse * (1 - ramp))


def _compute_llama3(rope: ModelRope, inverse: Array, original: float) -> Array:
    scaling = rope.scaling or {}
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = np.clip((original * inverse / (2 * math.pi) - low) / (high - low), 0, 1)
    return np.asarray(inverse / scaling["factor"] * (1 - smooth) + inverse * smooth)


def compute_frequencies(rope: ModelRope, rotated: int) -> Array:
    """Return inverse frequencies float64 [rotated / 2].

    Raises:
        GateError: a type that no export has.
    """
    inverse = 1.0 / rope.base ** (np.arange(0, rotated, 2) / rotated)
    if rope.type in ("default", "dynamic"):
        return inverse
    if rope.type == "linear":
        return np.asarray(inverse / (rope.scaling or {})["factor"])
    if rope.type == "llama3":
        return _compute_llama3(rope, inverse, float(rope.original or 0))
    if rope.type == "yarn":
        return _compute_yarn(rope, inverse, rotated, float(rope.original or 0))
    raise GateError(f"the gate has no table for rotary embedding of type {rope.type}")


def make_rope_table(rope: ModelRope, rotated: int, positions: Array) -> Array:
    """Return float32 [positions, rotated]: cosines of the first half, then sines."""
    angles = positions[:, None] * compute_frequencies(rope, rotated)[None, :]
    table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * rope.magnitude
    return np.asarray(table, np.float32)
