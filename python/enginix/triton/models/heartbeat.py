"""A sign of life of a model's process: the modification time of a file, which ``enginix serve`` reads."""

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
        self._path: Path | None = None
        self._is_stuck = is_stuck
        self._count, self._next = 0, 0.0
        # A server that was started by hand has no such directory; without a file a process is not watched.
        if directory.is_dir():
            with contextlib.suppress(OSError):
                self._path = directory / f"{model}-{os.getpid()}"
                self._path.touch(0o600)

    def beat(self) -> None:
        """Give a sign, at most once a period; none while the process is stuck.

        The time of the file is a count: that needs no room on a full disk, and no clock.
        """
        now = time.monotonic()
        if self._path is None or now < self._next or self._is_stuck():
            return
        self._count, self._next = self._count + 1, now + PERIOD
        with contextlib.suppress(OSError):
            os.utime(self._path, ns=(self._count, self._count))
