"""Why a build failed: ``data/failures.json`` matched against its last lines."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from enginix.console import human_bytes
from enginix.errors import EnginixError, MachineError
from enginix.runtime.supervise import Outcome
from enginix.tables import table

TAIL = 8


@dataclass(frozen=True)
class Known:
    """A row of the table that matches, and the line that it matches."""

    cause: str
    fix: str
    reference: str
    line: str


class BuildError(EnginixError):
    """A stage of a build failed, hung, or delivered something else than an engine."""

    kind = "build"


def known(lines: list[str]) -> Known | None:
    """The first row of the table that matches; rows are ordered from the particular to the general."""
    for row in table("failures")["failures"]:
        pattern = re.compile(row["match"], re.IGNORECASE)
        for line in reversed(lines):
            if pattern.search(line):
                return Known(row["cause"], row["fix"], row["reference"], line.strip()[:300])
    return None


def explain(stage: str, outcome: Outcome, stall: float) -> EnginixError:
    """The error that a failed stage ends with: how it ended, the cause where it is known, the last lines."""
    ended = f"exit status {outcome.status}"
    if outcome.status > 128 and outcome.status - 128 in {s.value for s in signal.Signals}:
        ended = f"killed by {signal.Signals(outcome.status - 128).name}"
    if outcome.stalled:
        ended = f"no line and no byte of output for {int(stall)} s, so it was ended"
    found = known(outcome.lines)
    tail = "\n    ".join(line[:300] for line in outcome.lines[-TAIL:]) or "no output"
    measured = f"memory at most {human_bytes(outcome.host_peak)}, {int(outcome.seconds)} s"
    if found is not None:
        return BuildError(
            f"{found.cause} ({ended}; {measured})",
            where=stage,
            fix=f"{found.fix}\n  reference: {found.reference}\n  said: {found.line}",
        )
    if outcome.stalled:
        row = table("failures")["stall"]
    elif outcome.status == 128 + signal.SIGKILL:
        row = table("failures")["killed"]
    else:
        row = {"cause": "", "fix": f"see its last lines:\n    {tail}", "reference": ""}
        return BuildError(f"{ended} ({measured})", where=stage, fix=row["fix"])
    error = MachineError if outcome.status == 128 + signal.SIGKILL and not outcome.stalled else BuildError
    return error(
        f"{row['cause']} ({ended}; {measured})",
        where=stage,
        fix=f"{row['fix']}\n  reference: {row['reference']}\n  its last lines:\n    {tail}",
    )
