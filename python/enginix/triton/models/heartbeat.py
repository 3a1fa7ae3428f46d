"""A sign of life of a model's process: a file that ``enginix serve`` reads, with a number that grows."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from enginix.triton.contract import HEARTBEATS

# Seconds between two signs of life.
PERIOD = 1.0


class HeartbeatFile:
    """The sign of life of one process.

    Args:
        model: the model's name, which is the first part of the file's.
        is_stuck: tells whether the process runs, and its work does not go on.
    """

    def __init__(self, model: str, is_stuck: Callable[[], bool] = lambda: False) -> None:
        directory = Path(tempfile.gettempdir()) / HEARTBEATS
        # A server that was started by hand has none.
        self._path = directory / f"{model}-{os.getpid()}" if directory.is_dir() else None
        self._is_stuck = is_stuck
        self._count, self._next = 0, 0.0

    def beat(self) -> None:
        """Write the next number, at most once a period; nothing while the process is stuck."""
        now = time.monotonic()
        if self._path is None or now < self._next or self._is_stuck():
            return
        self._count, self._next = self._count + 1, now + PERIOD
        # A full disk must end no request.
        with contextlib.suppress(OSError):
            self._path.write_text(str(self._count), "ascii")
