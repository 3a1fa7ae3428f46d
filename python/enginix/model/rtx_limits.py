"""Heads and rotations that an engine of kind ``rtx`` takes: fused attention, and one table for any length."""

from __future__ import annotations

from enginix.tables import load_table


def explain_unfused_heads(size: int) -> str | None:
    """Return why heads of a size have no fused attention; None where they have."""
    row = load_table("rtx")["headSizes"]
    if row["least"] <= size <= row["most"] and size % row["multiple"] == 0:
        return None
    return (
        f"heads of {size} have no fused attention; {row['least']} to {row['most']} in steps of "
        f"{row['multiple']} have"
    )


def explain_length_dependence(rotation: str) -> str | None:
    """Return why kind ``rtx`` does not take a rotation; None for one that it takes.

    Args:
        rotation: type of rotary scaling, ``default`` without one, or a checkpoint's position embedding.
    """
    if rotation in load_table("rtx")["rotations"]["taken"]:
        return None
    name = "long_rope" if rotation == "longrope" else rotation  # as checkpoints name it
    return f"the rotation {name} depends on a sequence's length, and an engine's is fixed"
