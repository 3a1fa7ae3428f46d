"""What a scheduler says of its requests, for tests of every scheduler."""

from __future__ import annotations

import threading
from collections.abc import Callable

from enginix.reference.scheduler import GenerationEvent


class Collector:
    """Gathers events; waits for ends.

    Args:
        patience: seconds that only a hang takes.
    """

    def __init__(self, patience: float) -> None:
        self.events: dict[str, list[GenerationEvent]] = {}
        self._patience, self._changed = patience, threading.Condition()

    def __call__(self, event: GenerationEvent) -> None:
        with self._changed:
            self.events.setdefault(event.id, []).append(event)
            self._changed.notify_all()

    def wait(self, ready: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(ready, self._patience), self.events

    def ended(self, *ids: str) -> None:
        self.wait(lambda: all(i in self.events and self.events[i][-1].finish for i in ids))

    def tokens(self, request_id: str) -> list[int | None]:
        return [e.token for e in self.events[request_id]]

    def said(self, request_id: str) -> tuple[list[int | None], str | None]:
        return self.tokens(request_id), self.events[request_id][-1].finish
