"""Sizes of attention heads that TensorRT for RTX has fused attention for."""

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
