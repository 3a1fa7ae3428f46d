"""Whether a model can become an engine of a kind, from tables alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from enginix.tables import load_table


@dataclass(frozen=True)
class ModelVerdict:
    """What the tables say of a model and a kind.

    Attributes:
        takes: None where no table tells.
        why: what stands against it, or what is not known.
        targets: names of gpus.json that run it; None for any machine.
    """

    takes: bool | None
    why: tuple[str, ...]
    targets: tuple[str, ...] | None


def list_targets(runs: Callable[[int], bool]) -> tuple[str, ...]:
    """Return the GPUs of gpus.json whose SM runs it, sorted."""
    return tuple(sorted(name for name, row in load_table("gpus")["gpus"].items() if runs(row["sm"])))


def explain_architecture(architecture: str | None, what: str) -> str:
    """Return why an architecture is not supported, or that the model names none."""
    return f"{architecture} {what}" if architecture else "the model names no architecture"
