"""Sliding windows of a model for later stages; a checkpoint's ``config.json`` has no key for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enginix.model.config import ModelConfig, find_windows
from enginix.model.jsonfile import read_object
from enginix.tables import load_table

WINDOW_KEY = "attentionWindow"


def describe_windows(model: ModelConfig) -> dict[str, Any]:
    """Return a model's windows for a manifest: tokens of each layer, in a pattern that repeats.

    A layer without a window has the context. Empty where no layer has one that is below the context.
    """
    return _describe_pattern(model.windows, model.max_position_embeddings)


def _describe_pattern(windows: tuple[int | None, ...], context: int) -> dict[str, Any]:
    if not any(w and w < context for w in windows):
        return {}
    window_tokens = [min(w or context, context) for w in windows]
    return {WINDOW_KEY: window_tokens[:1] if len(set(window_tokens)) == 1 else window_tokens}


def read_windows(model: Path) -> dict[str, Any]:
    """Return the windows of a model directory; empty if architectures.json lacks its architecture.

    Raises:
        ModelError: ``config.json`` is unreadable, or its window is not valid.
    """
    raw = read_object(model / "config.json")
    names, context = raw.get("architectures"), raw.get("max_position_embeddings")
    rows: Mapping[str, Any] = load_table("architectures")["architectures"]
    layers = raw.get("num_hidden_layers")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in rows:
        return {}
    if not isinstance(context, int) or not isinstance(layers, int) or not 0 < layers <= 10_000:
        return {}
    return _describe_pattern(
        tuple(find_windows(raw, rows[names[0]], layers, str(model / "config.json"))), context
    )


def read_context(model: Path, context: int) -> int:
    """Return how many tokens of a model mean the same with and without its windows: ``context`` or less."""
    windows: list[int] = read_windows(model).get(WINDOW_KEY, [context])
    return min(context, *windows)
