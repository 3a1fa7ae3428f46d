"""Connections of clients: a time for the header, a number of them, and room for those that ask something.

uvicorn waits for a header for ever, and accepts until the process may open no more files.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any, ClassVar

# In which a client must have sent a whole header, from the start or from the end of its last request on.
HEADER_SECONDS = 10.0
# In which a client must take what it is sent.
READ_SECONDS = 60.0
_MOST_FILES = 65536
# Files that are no connection of a client's.
_OWN_FILES = 64


def raise_file_limit() -> int:
    """Raise this process's limit of open files to what it may have; return how many connections that allows.

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
        """A connection. ``waiting`` holds those without a request, longest first."""

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
            """Start to wait for a header, unless it is waited for already: each byte is no new start."""
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
