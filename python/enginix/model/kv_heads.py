"""The number of KV heads that a configuration names, for every class of models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enginix.model.family_config import read_family_sizes
from enginix.model.family_rows import list_family_rows
from enginix.tables import load_table

_KEYS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")


def find_kv_heads(config: Mapping[str, Any], architecture: str | None) -> int | None:
    """Return the KV heads that ``config.json`` names; None where it names none, or names them by layer.

    Multi-query classes say it by a flag: Falcon and GPT-BigCode (data/memory_plan/memory_constants.json).
    """
    row = load_table("memory_constants")["multiQuery"]["architectures"].get(architecture)
    if row is not None and not (row["unless"] and config.get(row["unless"])):
        if config.get(row["flag"], row["default"]):
            return 1
        heads = next(
            (config[k] for k in ("num_attention_heads", "n_head") if type(config.get(k)) is int), None
        )
        return heads
    if (family := list_family_rows().get(architecture or "")) is not None:
        return read_family_sizes(config, family).get("num_key_value_heads")
    return next((config[key] for key in _KEYS if type(config.get(key)) is int), None)
