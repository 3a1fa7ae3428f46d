"""Sliding windows of a model for later stages; a checkpoint's ``config.json`` has no key for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from enginix.errors import ManifestError, ModelError
from enginix.model.class_defaults import fill_absent_sizes
from enginix.model.config import find_windows
from enginix.model.context_length import read_model_context
from enginix.model.family_config import read_family_sizes, read_family_windows
from enginix.model.family_rows import list_family_rows
from enginix.model.jsonfile import read_architecture, read_object
from enginix.model.model_config import ModelConfig
from enginix.tables import load_table

if TYPE_CHECKING:
    from enginix.manifest import Manifest

WINDOW_KEY = "attentionWindow"


def describe_windows(model: ModelConfig) -> dict[str, Any]:
    """Return a model's windows for a manifest: tokens of each layer, in a pattern that repeats.

    A layer without a window has the context. Empty where no layer has one that is below the context.
    """
    return _describe_pattern(model.windows, model.context)


def _describe_pattern(windows: tuple[int | None, ...], context: int) -> dict[str, Any]:
    if not any(w and w < context for w in windows):
        return {}
    window_tokens = [min(w or context, context) for w in windows]
    return {WINDOW_KEY: window_tokens[:1] if len(set(window_tokens)) == 1 else window_tokens}


def find_window_pattern(config: Mapping[str, Any]) -> list[int] | None:
    """Return the windows of a parsed configuration, whatever serves it, as :func:`describe_windows` does.

    Empty if every layer attends to the whole context; None where that is not known: a window that is invalid,
    or of layers that only the architecture's class names.

    Args:
        config: of the language model: some models keep it one level down.
    """
    name = read_architecture(config)
    row = load_table("architectures")["architectures"].get(name)
    layers = fill_absent_sizes(config).get("num_hidden_layers")
    context = read_model_context(config)
    kinds, window = config.get("layer_types"), config.get("sliding_window")
    spans = {"full_attention": None, "sliding_attention": window,
             "chunked_attention": config.get("attention_chunk_size")}  # fmt: skip
    if (family := list_family_rows().get(name or "")) is not None:
        sizes = read_family_sizes(config, family)
        layers = sizes.get("num_hidden_layers", 0)
        found = read_family_windows(config, family, layers) if 0 < layers <= 10_000 else None
        if found is None:
            return None
        windows = tuple(found)
    elif row is not None:
        if not _is_size(context) or not _is_size(layers) or layers > 10_000:
            return None
        try:
            windows = tuple(find_windows(config, row, layers, str(name)))
        except ModelError:  # which conversion names
            return None
    elif isinstance(kinds, list):
        if not set(map(str, kinds)) <= set(spans) or len(kinds) > 10_000:
            return None
        if any(kind != "full_attention" and not _is_size(spans[kind]) for kind in kinds):
            return None
        windows = tuple(spans[kind] for kind in kinds)
    elif config.get("use_sliding_window") is False or (
        window is None and not _slides_by_default(config, name)
    ):
        return []
    else:
        return [] if _is_size(window) and _is_size(context) and window >= context else None
    if not _is_size(context):
        return None if any(windows) else []
    pattern: list[int] = _describe_pattern(windows, context).get(WINDOW_KEY, [])
    return pattern


def _is_size(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 < value < 1 << 53


def _slides_by_default(config: Mapping[str, Any], architecture: Any) -> bool:
    """Return whether the configuration class has windows that ``config`` leaves out."""
    listed = load_table("memory_constants")["slidingByDefault"]["architectures"]
    return "sliding_window" not in config and architecture in listed


def read_windows(model: Path) -> dict[str, Any]:
    """Return the windows of a model directory; empty if architectures.json lacks its architecture.

    Raises:
        ModelError: ``config.json`` is unreadable, or its window is not valid.
    """
    raw = read_object(model / "config.json")
    names, context = raw.get("architectures"), read_model_context(raw)
    rows: Mapping[str, Any] = load_table("architectures")["architectures"]
    layers = fill_absent_sizes(raw).get("num_hidden_layers")
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


def read_engine_windows(engine_manifest: Manifest, longest: int | None, where: str) -> list[int]:
    """Return the windows that a compiled engine is to be told; empty if none is below its longest sequence.

    TensorRT-LLM's C++ runtime computes full attention unless it is told (``max_attention_window``).

    Args:
        longest: ``max_seq_len`` of the engine; None if it is not known.

    Raises:
        ManifestError: the manifest's windows are not numbers of tokens.
    """
    windows = engine_manifest.model.get(WINDOW_KEY)
    if windows is None:
        return []
    if not isinstance(windows, list) or not windows or not all(_is_size(w) for w in windows):
        raise ManifestError(f"model.{WINDOW_KEY} is {windows!r}", where=where, fix="build the engine again")
    longest = longest or max(windows)
    return [] if min(windows) >= longest else [min(w, longest) for w in windows]
