"""Number formats: which GPUs execute them, and the bits of their weights and KV caches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enginix.tables import load_table

_LLMAPI = "serve the model with the llmapi kind (TensorRT-LLM's PyTorch backend)"


def read_algorithms() -> dict[str, dict[str, Any]]:
    """Return the rows of number_formats.json by algorithm; do not modify them."""
    rows: dict[str, dict[str, Any]] = load_table("number_formats")["algorithms"]
    return rows


def read_edgellm_formats() -> dict[str, dict[str, Any]]:
    """Return the rows of the algorithms whose export by Edge-LLM is checked."""
    return {name: row for name, row in read_algorithms().items() if row["edgellm"]}


def read_packed_bits() -> dict[str, int]:
    """Return bits of 128 consecutive weights, scales included, for each algorithm where they are known."""
    return {name: row["bitsPer128"] for name, row in read_algorithms().items() if row["bitsPer128"]}


def read_kv_cache_bits() -> dict[str, int]:
    """Return bits of a number of the KV cache, for each format that can be planned with."""
    rows = load_table("number_formats")["kvCache"]
    return {name: row["bits"] for name, row in rows.items() if row["bits"]}


def supports_sm(row: Mapping[str, Any], sm: int) -> bool:
    """Whether an engine in the format of ``row`` (algorithm or KV cache) is built and executed on an SM."""
    refused = row["refusedSm"]
    return sm >= (row["minSm"] or 0) and not (refused and refused[0] <= sm < refused[1])


def describe_remedy(row: Mapping[str, Any]) -> str:
    """Return what to do instead of converting an algorithm that is not converted."""
    is_llmapi_only = row["llmapi"] and not row["engine"]
    return f"{row['instead']}, or {_LLMAPI}" if is_llmapi_only else str(row["instead"])
