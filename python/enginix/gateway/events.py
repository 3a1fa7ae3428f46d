"""Parse server-sent events by their standard: lines end at CR, LF or CRLF, and nowhere else.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream. Python's and httpx's
functions for lines of text also end lines at U+2028, U+2029 and U+0085, which are ordinary characters in
JSON.
"""

from __future__ import annotations

# Largest event in bytes; a piece of text is a few bytes.
MAX_BYTES = 16 * 2**20
DONE = "[DONE]"


class EventTooLarge(Exception):
    """An event is larger than any answer's."""


class EventParser:
    """Parses a stream of bytes, in pieces of any size, into the data of its events."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._after_cr = False
        self._at_start = True

    def feed(self, raw: bytes) -> list[str]:
        """Return the data of each event that these bytes end.

        Raises:
            EventTooLarge: an event is larger than ``MAX_BYTES``.
        """
        if self._after_cr and raw:
            raw = raw.removeprefix(b"\n")
            self._after_cr = False
        if raw.endswith(b"\r"):
            self._after_cr = True
        events: list[str] = []
        # Lines of bytes end at CR, LF and CRLF alone in Python.
        for line in raw.splitlines(keepends=True):
            self._line += line
            if line.endswith((b"\n", b"\r")):
                events += self._end_of_line()
            if self._size + len(self._line) > MAX_BYTES:
                raise EventTooLarge
        return events

    def close(self) -> list[str]:
        """Return the last event if its server omitted the empty line; the standard drops such an event."""
        ended = self._end_of_line() if self._line else []
        return [*ended, *self._dispatch()]

    def _end_of_line(self) -> list[str]:
        line = bytes(self._line).rstrip(b"\r\n")
        self._line.clear()
        if self._at_start:
            line, self._at_start = line.removeprefix(b"\xef\xbb\xbf"), False
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value)
        return []

    def _dispatch(self) -> list[str]:
        if not self._data:
            return []
        data = b"\n".join(self._data).decode("utf-8", "replace")
        self._data.clear()
        self._size = 0
        return [data]
