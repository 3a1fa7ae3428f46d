"""Notice processes that live and do nothing: stopped, deadlocked, stuck in a driver."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

# Looks at a process without a sign of life, and at a server without an answer, before it counts as hung.
HUNG_LOOKS = 60
# Looks between two questions to the server.
ASKED_EVERY = 10


class HangWatch:
    """Watches the processes of one server. It counts looks, not seconds: a machine that slept did not look.

    Args:
        heartbeats: directory of the processes' signs of life (:mod:`enginix.triton.models.heartbeat`);
            NVIDIA's models give none.
        is_live: asks the server whether it lives.
    """

    def __init__(self, heartbeats: Path, is_live: Callable[[], bool]) -> None:
        self._heartbeats, self._is_live = heartbeats, is_live
        # File → its last modification time, and the looks since then.
        self._signs: dict[str, tuple[int, int]] = {}
        self._looks = self._unanswered = 0

    def find_hung(self) -> str | None:
        """Look once; return the name of the model that hangs, or ``tritonserver``."""
        for file in self._heartbeats.glob("*-*"):
            with contextlib.suppress(OSError):
                sign = file.stat().st_mtime_ns
                last, looks = self._signs.get(file.name, (None, 0))
                self._signs[file.name] = (sign, looks + 1 if sign == last else 0)
                if self._signs[file.name][1] >= HUNG_LOOKS:
                    return file.name.rpartition("-")[0]
        self._looks += 1
        if self._looks % ASKED_EVERY == 0:
            self._unanswered = 0 if self._is_live() else self._unanswered + ASKED_EVERY
        return "tritonserver" if self._unanswered >= HUNG_LOOKS else None
