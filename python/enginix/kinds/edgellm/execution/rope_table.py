"""The rotation table that the runtime feeds to an exported graph, from the export's own config.json.

``dynamic`` does not stretch within
``max_position_embeddings``, beyond which Edge-LLM does not take it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from enginix.errors import GateError
from enginix.kinds.edgellm.execution.plugin_nodes import Array
from enginix.model.rope import ModelRope, read_rope
from enginix.model.rotary_frequencies import scale_frequencies
from enginix.tables import load_table


def read_exported_rope(config: Mapping[str, Any], architecture: str, where: str) -> ModelRope:
    """Read the rotary embedding of an exported config.json by the reader of models.

    Raises:
        ModelError: the parameters are unknown or invalid.
    """
    row: Mapping[str, Any] = load_table("architectures")["architectures"][architecture]
    return read_rope(config, where, row=row, head_dim=config["head_dim"])


def make_rope_table(rope: ModelRope, rotated: int, positions: Array) -> Array:
    """Return float32 [positions, rotated]: cosines of the first half, then sines.

    Raises:
        GateError: a type that no export has.
    """
    if rope.type not in ("default", "dynamic", "linear", "llama3", "yarn"):
        raise GateError(f"the gate has no table for rotary embedding of type {rope.type}")
    scaling = dict(rope.scaling or {})
    turns = {key: scaling.get(key) or default for key, default in (("beta_fast", 32), ("beta_slow", 1))}
    scaling |= {**turns, "original_max_position_embeddings": rope.original}
    inverse = 1.0 / rope.base ** (np.arange(0, rotated, 2) / rotated)
    angles = positions[:, None] * scale_frequencies(inverse, rope.type, scaling, rope.base)
    table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * rope.magnitude
    return np.asarray(table, np.float32)
