"""Names of gates: ``data/judgement/gates.json``, which Nix reads as well."""

from __future__ import annotations

from typing import Literal

from enginix.tables import load_table


def list_gates(subject: Literal["checkpoint", "engine"]) -> tuple[str, ...]:
    """Return the gates that judge a checkpoint, or an engine in its own runtime, in their order."""
    return tuple(name for name, row in load_table("gates")["gates"].items() if subject in row["of"])
