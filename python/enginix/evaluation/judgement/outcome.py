"""What a gate says."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class GateOutcome:
    """One gate's answer.

    Attributes:
        gate: its name.
        passed: the only thing that a build looks at.
        summary: one line for people.
        detail: evidence, JSON; nothing volatile in it.
    """

    gate: str
    passed: bool
    summary: str
    detail: dict[str, Any] = field(default_factory=dict)


def round_up_bound(value: float) -> float:
    """``value`` rounded up to one significant digit, and at least 1e-6.

    Evidence states bounds instead of measurements: the last digits of a sum depend on the number of threads
    and the CPU, and the same inputs must give the same bytes.
    """
    if value <= 1e-6:
        return 1e-6
    exponent = math.floor(math.log10(value))
    return float(f"{math.ceil(round(value / 10.0**exponent, 9))}e{exponent}")
