"""Progress of a command, in one style, and a record of what its steps took.

On a terminal one line is drawn again and again; in a log a line a minute appears, without carriage returns;
with ``--quiet`` nothing does. A step that counts nothing shows its time. The record is for people who compare
builds: it goes to ``--json`` and into a file beside the artefact, never into one.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from enginix import console
from enginix.console import format_bytes, format_duration

BYTES = "B"  # the unit of steps that count bytes
TICK = 0.25  # seconds between two drawings, and two samples of the memory
PATIENCE = 0.75  # seconds without output before the line appears
LOG_INTERVAL = 60.0  # seconds between two lines in a log
SHORT = 80  # columns that a line should fit
LEAST_SECONDS = 1.0  # of a step before its speed says anything


@dataclass
class StepRecord:
    """What all runs of one step took.

    Attributes:
        amount: of ``unit``: bytes, or things that the step counts.
        peak_bytes: largest resident memory of this process meanwhile; 0 where it is not known.
    """

    name: str
    unit: str
    seconds: float = 0.0
    amount: int = 0
    peak_bytes: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the record; counts of bytes are named so."""
        row: dict[str, Any] = {"step": self.name, "seconds": round(self.seconds, 3)}
        if self.amount:
            speed = round(self.amount / self.seconds, 3) if self.seconds else None
            if self.unit == BYTES:
                row |= {"bytes": self.amount, "bytesPerSecond": None if speed is None else round(speed)}
            else:
                row |= {"amount": self.amount, "unit": self.unit, "perSecond": speed}
        return {**row, "peakBytes": self.peak_bytes or None}


class ProgressStep:
    """A step that runs; its methods may be called from several threads.

    Attributes:
        total: how much there is of ``unit``; None for unknown.
        note: shown behind the counts, such as ``7 of 8 files``.
    """

    def __init__(self, name: str, total: int | None, unit: str) -> None:
        self.name, self.total, self.unit, self.note = name, total, unit, ""
        self.begun = time.monotonic()
        self.amount = self.new = 0
        self.peak_bytes, self._high_water = _read_memory()
        self._lock = threading.Lock()

    def advance(self, amount: int = 1) -> None:
        """Add what was done; negative where some of it was thrown away."""
        with self._lock:
            self.amount += amount
            self.new += amount

    def advance_to(self, amount: int) -> None:
        """Set what was done since the step began."""
        self.advance(amount - self.amount)

    def resume(self, amount: int) -> None:
        """Add what an earlier run did: it does not count for the speed."""
        with self._lock:
            self.amount += amount

    def sample_memory(self) -> None:
        self.peak_bytes = max(self.peak_bytes, _read_memory()[0])

    def measure_peak(self) -> int:
        """Return the peak: exact where this step raised that of the process, else the largest sample."""
        resident, high_water = _read_memory()
        return high_water if high_water > self._high_water else max(self.peak_bytes, resident)

    def describe(self) -> str:
        """Return the state as text: counts, share, speed, and time left by this run's own speed, or taken."""
        seconds = time.monotonic() - self.begun
        speed = max(self.new, 0) / seconds if seconds >= LEAST_SECONDS else 0.0
        parts = []
        if self.unit == BYTES:
            size = format_bytes(self.amount)
            parts.append(size if self.total is None else f"{size} of {format_bytes(self.total)}")
        elif self.total is not None:
            parts.append(f"{self.amount:,} of {self.total:,} {self.unit}")
        elif self.amount:
            parts.append(f"{self.amount:,} {self.unit}")
        if parts and self.total:
            parts[0] += f" ({min(self.amount / self.total, 1):.0%})"
        if self.note:
            parts.append(self.note)
        if self.unit == BYTES:
            parts.append(f"{format_bytes(int(speed))}/s")
        if speed and self.total is not None and self.total > self.amount:
            parts.append(f"{format_duration((self.total - self.amount) / speed)} left")
        else:
            parts.append(format_duration(seconds))
        return ", ".join(parts)


class CommandProgress:
    """The steps of one command: shown while they run, and recorded.

    Args:
        is_live: draw a line, where standard error is a terminal.
        interval: seconds between two lines in a log.
    """

    def __init__(self, name: str, *, is_live: bool = True, interval: float = LOG_INTERVAL) -> None:
        self.name, self.interval = name, interval
        self.is_terminal = console.is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"
        self.is_live = is_live
        self._begun = self._last_line = time.monotonic()
        self._records: dict[str, StepRecord] = {}
        self._open: list[ProgressStep] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="enginix-progress", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        console.show_live_line("")

    def open_step(self, step: ProgressStep) -> None:
        with self._lock:
            self._open.append(step)

    def close_step(self, step: ProgressStep) -> None:
        with self._lock:
            names = [s.name for s in self._open[: self._open.index(step) + 1]]
            self._open.remove(step)
            record = self._records.setdefault(" / ".join(names), StepRecord(" / ".join(names), step.unit))
            record.seconds += time.monotonic() - step.begun
            record.amount += max(step.new, 0)
            record.peak_bytes = max(record.peak_bytes, step.measure_peak())

    def as_json(self) -> dict[str, Any]:
        """Return seconds and peak memory of the command so far, and of each step that ended."""
        with self._lock:
            steps = [record.as_json() for record in self._records.values()]
        return {
            "seconds": round(time.monotonic() - self._begun, 3),
            "peakBytes": _read_memory()[1] or None,
            "steps": steps,
        }

    def describe(self) -> str:
        """Return one line: command, outermost and innermost step, state; fewer names where it is long."""
        with self._lock:
            steps = list(self._open)
        if not steps:
            return f"{self.name}: {format_duration(time.monotonic() - self._begun)}"
        state, inner = steps[-1].describe(), f"{steps[-1].name}: "
        outer = f"{steps[0].name}, " if len(steps) > 1 else ""
        lines = [f"{self.name}: {names}{state}" for names in (outer + inner, inner, "")]
        return next((line for line in lines if len(line) < SHORT), lines[-1])

    def _run(self) -> None:
        # A thread of its own, so that a step that stalls does not silence it.
        while not self._over.wait(TICK if self.interval > TICK else self.interval):
            with self._lock:
                for step in self._open:
                    step.sample_memory()
            now = time.monotonic()
            if not self.is_live:
                continue
            if self.is_terminal:
                if now - console.last_output() >= PATIENCE:
                    console.show_live_line(self.describe())
            elif now - self._last_line >= self.interval:
                self._last_line = now
                console.print_message(self.describe())


_command: CommandProgress | None = None


@contextlib.contextmanager
def report_command(
    name: str, *, is_live: bool = True, interval: float = LOG_INTERVAL
) -> Iterator[CommandProgress]:
    """Show and record the steps of a command while the block runs."""
    global _command
    outer, _command = _command, CommandProgress(name, is_live=is_live, interval=interval)
    current = _command
    current.start()
    try:
        yield current
    finally:
        current.stop()
        _command = outer


@contextlib.contextmanager
def track_step(name: str, total: int | None = None, unit: str = "") -> Iterator[ProgressStep]:
    """Track one step of the command that runs; without a command nothing is shown."""
    step, command = ProgressStep(name, total, unit), _command
    if command is None:
        yield step
        return
    command.open_step(step)
    try:
        yield step
    finally:
        command.close_step(step)


def _read_memory() -> tuple[int, int]:
    """Return resident memory of this process, and its largest ever, in bytes; 0 where unknown."""
    found = {"VmRSS": 0, "VmHWM": 0}
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                name, _, value = line.partition(":")
                if name in found:
                    found[name] = int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return 0, 0
    return found["VmRSS"], found["VmHWM"]
