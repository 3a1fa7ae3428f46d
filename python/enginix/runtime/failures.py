"""Explain failed builds: match ``data/runtime/failures.json`` against their last lines."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from enginix.console import format_bytes
from enginix.errors import EnginixError, MachineError
from enginix.runtime.supervise import CommandOutcome
from enginix.tables import load_table

TAIL_LINES = 8


@dataclass(frozen=True)
class KnownFailure:
    """A row of the table that matches, and the line that it matches."""

    cause: str
    fix: str
    reference: str
    line: str


class BuildError(EnginixError):
    """A stage of a build failed, hung, or did not write an engine."""

    kind = "build"


def match_failure(lines: list[str]) -> KnownFailure | None:
    """Return the first row of the table that matches; rows are ordered from the particular to the general."""
    for row in load_table("failures")["failures"]:
        pattern = re.compile(row["match"], re.IGNORECASE)
        for line in reversed(lines):
            if pattern.search(line):
                return KnownFailure(row["cause"], row["fix"], row["reference"], line.strip()[:300])
    return None


def explain_build_failure(stage: str, outcome: CommandOutcome, stall: float) -> EnginixError:
    """Return the error for a failed stage: its exit status, the cause if known, and the last lines."""
    ending = f"exit status {outcome.status}"
    if outcome.status > 128 and outcome.status - 128 in {s.value for s in signal.Signals}:
        ending = f"killed by {signal.Signals(outcome.status - 128).name}"
    if outcome.stalled:
        ending = f"no line and no byte of output for {int(stall)} s, so it was ended"
    failure = match_failure(outcome.lines)
    tail = "\n    ".join(line[:300] for line in outcome.lines[-TAIL_LINES:]) or "no output"
    measured = f"memory at most {format_bytes(outcome.host_peak)}, {int(outcome.seconds)} s"
    if failure is not None:
        return BuildError(
            f"{failure.cause} ({ending}; {measured})",
            where=stage,
            fix=f"{failure.fix}\n  reference: {failure.reference}\n  said: {failure.line}",
        )
    if outcome.stalled:
        row = load_table("failures")["stall"]
    elif outcome.status == 128 + signal.SIGKILL:
        row = load_table("failures")["killed"]
    else:
        row = {"cause": "", "fix": f"see its last lines:\n    {tail}", "reference": ""}
        return BuildError(f"{ending} ({measured})", where=stage, fix=row["fix"])
    error = MachineError if outcome.status == 128 + signal.SIGKILL and not outcome.stalled else BuildError
    return error(
        f"{row['cause']} ({ending}; {measured})",
        where=stage,
        fix=f"{row['fix']}\n  reference: {row['reference']}\n  its last lines:\n    {tail}",
    )
