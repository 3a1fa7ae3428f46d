"""Number formats: which GPUs execute them, and the bits of their weights and KV caches."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from enginix.tables import load_table

_LLMAPI = "serve this one with the llmapi kind (TensorRT-LLM's PyTorch backend)"


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


def list_missing_formats(row: Mapping[str, Any], formats: Collection[str]) -> list[str]:
    """Return the formats that an algorithm computes with and a GPU lacks; ``formats`` is empty if unknown."""
    return [name for name in row["needs"] if formats and name not in formats]


def runs_on_gpu(row: Mapping[str, Any], sm: int, formats: Collection[str], *, is_compiled: bool) -> bool:
    """Whether a GPU executes the format of ``row``, as nix/check/target.nix computes it.

    Args:
        formats: what the GPU computes with (gpus.json).
        is_compiled: as an engine that TensorRT-LLM's builder compiles; else in its PyTorch backend.
    """
    if list_missing_formats(row, formats):
        return False
    return supports_sm(row, sm) if is_compiled else sm >= (row["minSm"] or 0)


def find_fallback(name: str | None, sm: int) -> Mapping[str, Any] | None:
    """Return the kernels of TensorRT-LLM's PyTorch backend for a format that an SM has no hardware for.

    Returns:
        A row of ``fallbacks`` in number_formats.json; None for any other.
    """
    row: Mapping[str, Any] | None = load_table("number_formats")["fallbacks"].get(name)
    return row if row is not None and row["least"] <= sm < row["below"] else None


def find_fallback_version(row: Mapping[str, Any], sm: int) -> str:
    """Return the first TensorRT-LLM that is known to have a fallback on an SM."""
    return str(row["since"][str(max(int(least) for least in row["since"] if int(least) <= sm))])


def describe_fallback(name: str, row: Mapping[str, Any], sm: int) -> str:
    """Return what a fallback is and needs."""
    return (
        f"SM {sm} has no hardware for {name}: {row['kernels']} kernels compute it in {row['dtype']}, from "
        f"TensorRT-LLM {find_fallback_version(row, sm)} on (read in its source, not run)"
    )


def explain_no_llmapi(name: str, row: Mapping[str, Any]) -> str:
    """Return why TensorRT-LLM's PyTorch backend does not take an algorithm whose row says so."""
    return f"TensorRT-LLM's PyTorch backend does not take {name}: {row['why']}"


def describe_remedy(row: Mapping[str, Any]) -> str:
    """Return what to do instead of converting an algorithm that is not converted."""
    is_llmapi_only = row["llmapi"] and not row["engine"]
    return f"{row['instead']}, or {_LLMAPI}" if is_llmapi_only else str(row["instead"])
