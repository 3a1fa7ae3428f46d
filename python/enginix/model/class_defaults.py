"""Sizes that a ``config.json`` leaves out: those of the architecture's configuration class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enginix.model.jsonfile import read_architecture
from enginix.tables import load_table

# The number of experts in config.json; the first that exists counts.
EXPERT_COUNT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts")
_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings",
)  # fmt: skip


def fill_absent_sizes(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a configuration with the absent sizes of an architecture of architectures.json, as conversion
    reads them; others as they are. Null is not absent.

    Args:
        config: of the language model: some models keep it one level down.
    """
    row = load_table("architectures")["architectures"].get(read_architecture(config))
    if row is None:
        return config
    keys = list(_SIZES)
    if (experts := row["experts"]) is not None:
        keys += [experts["topK"], experts["width"]]
        if all(config.get(key) is None for key in experts["count"]):
            keys.append(experts["count"][0])
    sizes = {key: row["defaults"].get(key) for key in keys if key not in config}
    return {**{key: size for key, size in sizes.items() if size is not None}, **config}
