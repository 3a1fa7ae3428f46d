"""What ``enginix gate`` asks of a kind whose engines this Python executes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from enginix.evaluation.judgement.outcome import GateOutcome
from enginix.manifest import Manifest


@dataclass(frozen=True)
class GateReport:
    """Where the answers of an engine are that was asked in this Python, and what a report of them needs.

    Attributes:
        answers: directory of said.json.
        facts: what executed, in words and numbers; name → value.
    """

    answers: Path
    facts: dict[str, Any]

    def list_lines(self, outcomes: Sequence[GateOutcome]) -> list[str]:
        """Return the report, a line each: these lines tell enough of the machine and nothing of its owner."""
        failed = [outcome.gate for outcome in outcomes if not outcome.passed]
        verdict = f"FAILED: {', '.join(failed)}" if failed else "all gates passed"
        return [
            "please report these lines: how this kind does on a GPU is not known yet"
            if "gpu" in self.facts
            else "executed by the interpreter: this says nothing of NVIDIA's runtime",
            *(f"  {name}: {value}" for name, value in self.facts.items()),
            f"  gates: {verdict}",
        ]


@dataclass(frozen=True)
class GateAsking:
    """How ``enginix gate`` asks an engine in this Python.

    Attributes:
        engine: its directory.
        questions: directory of asked.json, and of the answers.
        checkpoint: of the engine, which an interpreter executes; None for its runtime.
        driver: the GPU driver's root; None finds it.
        gates: names of those that are judged.
        stall: seconds without a sign until it counts as hung.
    """

    engine: Path
    manifest: Manifest
    questions: Path
    checkpoint: Path | None
    driver: Path | None
    gates: Collection[str]
    stall: float


class GateAsker(Protocol):
    """The ``gate_asker`` module of a kind whose engines this Python asks."""

    def ask_gated_engine(self, asking: GateAsking, write_questions: Callable[[], object]) -> GateReport:
        """Ask an engine.

        Args:
            write_questions: writes asked.json; called when the machine is known to fit.

        Raises:
            EnginixError: the engine cannot be executed here; has the reason.
        """
        ...
