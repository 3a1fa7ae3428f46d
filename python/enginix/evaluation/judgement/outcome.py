"""The outcome of a gate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from enginix.errors import EnginixError, describe_failure


@dataclass(frozen=True)
class GateOutcome:
    """The outcome of one gate.

    Attributes:
        gate: its name.
        passed: the verdict, which decides a build.
        summary: one line for people.
        detail: evidence as JSON, without volatile values.
    """

    gate: str
    passed: bool
    summary: str
    detail: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def not_run(gate: str, e: Exception) -> GateOutcome:
        """Return the outcome of a gate that could not be decided, which has failed."""
        fix = {"fix": e.fix} if isinstance(e, EnginixError) and e.fix else {}
        reason = describe_failure(e)
        return GateOutcome(gate, False, f"could not be run: {reason}", {"error": reason, **fix})


def round_up_bound(value: float) -> float:
    """Round ``value`` up to one significant digit, and to at least 1e-6.

    Evidence states bounds instead of measurements: the last digits of a sum depend on the number of threads
    and the CPU, and the same inputs must give the same bytes.
    """
    if value <= 1e-6:
        return 1e-6
    exponent = math.floor(math.log10(value))
    return float(f"{math.ceil(round(value / 10.0**exponent, 9))}e{exponent}")
