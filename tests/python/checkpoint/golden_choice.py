"""A choice of golden rows for every run; continuous integration takes all of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import pytest


def choose_rows(rows: Iterable[Any], list_features: Callable[[Any], Iterable[Hashable]]) -> list[Any]:
    """Return rows that together have every feature: each that has one which no row before it has."""
    seen: set[Hashable] = set()
    chosen = []
    for row in rows:
        features = set(list_features(row))
        if features - seen:
            chosen.append(row)
            seen |= features
    return chosen


def mark_others_slow(rows: Iterable[Any], chosen: Iterable[Any]) -> list[Any]:
    """Return all rows as parameters of a test, of which those that are not chosen are slow."""
    names = {row.id for row in chosen}
    return [pytest.param(row, id=row.id, marks=() if row.id in names else pytest.mark.slow) for row in rows]
