"""Fixes for unknown names of a Triton repository."""

from __future__ import annotations

from collections.abc import Collection

from enginix.tables import load_table
from enginix.wording import suggest_name


def suggest_fix(name: str, known: Collection[str]) -> str:
    """Return the fix for an unknown name: its new name, the nearest known one, or all known ones."""
    if (now := load_table("triton_contract")["renamed"]["names"].get(name)) in known:
        return f"it is {now} in this version"
    return suggest_name(name, known, f"known are: {', '.join(sorted(known))}")
