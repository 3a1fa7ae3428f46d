"""Camel case for the keys of JSON that enginix prints."""

from __future__ import annotations

from typing import Any


def camelise_keys(value: Any) -> Any:
    """Return ``value`` with the keys of all its objects in camel case: ``max_seq_len`` → ``maxSeqLen``."""
    if isinstance(value, dict):
        return {_camelise_key(k): camelise_keys(v) for k, v in value.items()}
    return [camelise_keys(v) for v in value] if isinstance(value, (list, tuple)) else value


def _camelise_key(key: str) -> str:
    # Paths, dtype codes and roles are values that happen to be keys.
    if "_" not in key or not key.islower() or "." in key:
        return key
    head, *other_words = key.split("_")
    return head + "".join(word.capitalize() for word in other_words)
