"""Limits for clients' connections: a time for the header, and a number that favours running requests.

uvicorn waits for a header for ever, and accepts connections until the process has no file descriptor left.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any, ClassVar

# Seconds for a client to send a whole header, from the start or from the end of its last request.
HEADER_SECONDS = 10.0
# Seconds for a client to receive what it is sent.
READ_SECONDS = 60.0
_MOST_FILES = 65536
# Files other than clients' connections.
_OWN_FILES = 64


def raise_file_limit() -> int:
    """Raise this process's limit of open files to its maximum; return the number of connections it allows.

    Each connection may need another one to a server behind.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    max_files = _MOST_FILES if hard == unlimited else min(hard, _MOST_FILES)
    if soft != unlimited and soft < max_files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max_files, hard))
    return max(16, (max_files - _OWN_FILES) // 2)


def limited_protocol(base: Any, max_connections: int, header_seconds: float = HEADER_SECONDS) -> Any:
    """Return a class of connections like another, with limits.

    Args:
        base: uvicorn's class for HTTP.
        max_connections: connections at once; beyond them, the one that has waited longest without a request
            is closed.
    """

    class LimitedProtocol(base):  # type: ignore[misc]
        """A connection. ``waiting`` holds the connections without a request, longest first."""

        waiting: ClassVar[dict[Any, None]] = {}
        number = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            LimitedProtocol.number += 1
            self._stalled: asyncio.TimerHandle | None = None
            self._header_timer: asyncio.TimerHandle | None = None
            if LimitedProtocol.number > max_connections:
                longest = next(iter(self.waiting), self)
                longest._abort()
            self._await_request()

        def connection_lost(self, exc: Exception | None) -> None:
            LimitedProtocol.number -= 1
            self._end_waiting()
            self._end_stalling()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._has_request():
                self._end_waiting()
            else:
                self._await_request()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self._has_request():
                self._await_request()

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._stalled is None:
                self._stalled = self.loop.call_later(READ_SECONDS, self._abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._end_stalling()

        def _end_stalling(self) -> None:
            if self._stalled is not None:
                self._stalled.cancel()
                self._stalled = None

        def _has_request(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _await_request(self) -> None:
            """Start the time for a header, unless it runs already: single bytes do not restart it."""
            if self._header_timer is None and not self.transport.is_closing():
                self._header_timer = self.loop.call_later(header_seconds, self._abort)
                self.waiting[self] = None

        def _end_waiting(self) -> None:
            self.waiting.pop(self, None)
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _abort(self) -> None:
            self._end_waiting()
            self.transport.abort()

    return LimitedProtocol
