"""Supervise a long command: show its lines, measure its memory, end it when it makes no progress."""

from __future__ import annotations

import collections
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from enginix import console
from enginix.console import format_bytes
from enginix.process_group import list_descendants
from enginix.runtime.child import Child, measure_resident_memory
from enginix.runtime.sandbox import Sandbox

KEPT_LINES = 400
LONGEST_LINE = 4000


@dataclass(frozen=True)
class Watch:
    """Settings for supervising a command.

    Attributes:
        stall: seconds without a new line and without growing output after which it counts as hung.
        beat: seconds between two lines that report that it runs.
        outputs: files and directories whose growth is progress.
        gpu_memory: samples the bytes in use on the GPU; None if they cannot be measured.
    """

    stall: float = 1800.0
    beat: float = 60.0
    outputs: tuple[Path, ...] = ()
    gpu_memory: Callable[[], int | None] | None = None


@dataclass(frozen=True)
class CommandOutcome:
    """The result of a supervised command.

    Attributes:
        status: exit status; 128 + n for death by signal n.
        lines: the last lines that it printed.
        host_peak: most bytes of memory that all its processes held together, as sampled.
        gpu_peak: most bytes in use on the GPU, as sampled; None if not measured.
        stalled: it was ended for lack of progress.
        seconds: run time.
    """

    status: int
    lines: list[str]
    host_peak: int
    gpu_peak: int | None
    stalled: bool
    seconds: float


def supervise_command(sandbox: Sandbox, words: list[str], watch: Watch, *, stage: str) -> CommandOutcome:
    """Run a command until it ends or makes no progress; no process of it survives this call."""
    lines: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
    started_at = last_progress = last_beat = time.monotonic()
    has_new_line = threading.Event()
    host_peak, gpu_peak, size, stalled = 0, None, _measure_size(watch.outputs), False

    with Child(sandbox, words, capture=True) as child:
        stream = child.process.stdout
        assert stream is not None

        def read() -> None:
            with contextlib.suppress(ValueError, OSError):
                for raw in iter(lambda: stream.readline(LONGEST_LINE), b""):
                    line = raw.decode("utf-8", "replace").rstrip("\r\n")
                    lines.append(line)
                    console.print_message(line)
                    has_new_line.set()

        reader = threading.Thread(target=read, name="enginix-stage", daemon=True)
        reader.start()
        step = 0.05
        while child.process.poll() is None:
            time.sleep(step)
            step = min(step * 1.5, 1.0)
            now = time.monotonic()
            below = list_descendants(child.process.pid)
            # Remembered, so that processes that leave the tree are ended as well.
            child.seen.update(below)
            host_peak = max(host_peak, measure_resident_memory(child.process.pid, below))
            if watch.gpu_memory is not None and (used := watch.gpu_memory()) is not None:
                gpu_peak = max(gpu_peak or 0, used)
            new_size = _measure_size(watch.outputs)
            if has_new_line.is_set() or new_size != size:
                has_new_line.clear()
                size, last_progress = new_size, now
            if now - last_progress > watch.stall:
                stalled = True
                break
            if now - last_beat >= watch.beat:
                last_beat = now
                console.print_message(
                    f"{stage}: {_format_minutes(now - started_at)}, memory at most {format_bytes(host_peak)}"
                    + (f", GPU {format_bytes(gpu_peak)}" if gpu_peak is not None else "")
                    + f", output {format_bytes(size)}, last sign {_format_minutes(now - last_progress)} ago"
                )
        child.kill()
        reader.join(5)
        status = child.process.returncode
    return CommandOutcome(
        status=128 - status if status < 0 else status,
        lines=list(lines),
        host_peak=host_peak,
        gpu_peak=gpu_peak,
        stalled=stalled,
        seconds=time.monotonic() - started_at,
    )


def _measure_size(paths: Iterable[Path]) -> int:
    total = 0
    for path in paths:
        with contextlib.suppress(OSError):
            if path.is_dir():
                for entry in os.scandir(path):
                    with contextlib.suppress(OSError):
                        total += entry.stat().st_size
            else:
                total += path.stat().st_size
    return total


def _format_minutes(seconds: float) -> str:
    return f"{int(seconds)} s" if seconds < 60 else f"{int(seconds // 60)} min"
