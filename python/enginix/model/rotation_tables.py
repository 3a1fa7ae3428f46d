"""Rotations that are one table, whatever the length of a sequence: an engine of fixed sizes has no other."""

from __future__ import annotations

from enginix.tables import load_table


def explain_length_dependence(rotation: str) -> str | None:
    """Return why kind ``rtx`` does not take a rotation; None for one that it takes.

    Args:
        rotation: type of rotary scaling, ``default`` without one, or a checkpoint's position embedding.
    """
    if rotation in load_table("rtx")["rotations"]["taken"]:
        return None
    name = "long_rope" if rotation == "longrope" else rotation  # as checkpoints name it
    return f"the rotation {name} depends on a sequence's length, and an engine's is fixed"
