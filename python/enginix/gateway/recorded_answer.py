"""Keep what a server with OpenAI's interface answers, as it comes, beside what LiteLLM makes of it.

LiteLLM counts tokens where a server does not, adds details to its usages, fields to its messages and times to
its chunks, and leaves out null values. It decides whether an answer is one; the client gets the server's.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any, cast

import httpx

from enginix.gateway.events import DONE, EventParser, EventTooLarge


class RecordedAnswer:
    """The answer of one server to one request.

    Args:
        path: the request's route; LiteLLM may ask the server by another one, and convert the answer.
        is_stream: the request asks for a stream.

    Attributes:
        is_recorded: the answer is kept; one that is compressed or comes from another route is not.
        is_redirect: the server leads elsewhere, where the session does not follow.
    """

    def __init__(self, path: str, *, is_stream: bool) -> None:
        self._is_chat, self._is_stream = _is_chat(path), is_stream
        self._parser, self._whole = EventParser(), bytearray()
        self._events: list[str] = []
        self.is_recorded = self.is_redirect = self._is_done = self._is_too_large = False

    def begin(self, path: str) -> None:
        """Forget an earlier answer; record the one that comes from this path of the server."""
        self._parser, self._whole = EventParser(), bytearray()
        self._events.clear()
        self.is_recorded, self._is_done = _is_chat(path) == self._is_chat, False

    def feed(self, raw: bytes) -> None:
        if not self._is_stream:
            self._whole += raw
            return
        try:
            self._events += self._parser.feed(raw)
        except EventTooLarge:
            self._is_too_large = True

    def end(self) -> None:
        self._events += self._parser.close()

    def take_chunks(self) -> list[dict[str, Any]] | None:
        """Return the chunks since the last call; ``None`` if this answer is not recorded as a stream.

        Raises:
            EventTooLarge: an event is larger than any answer's.
        """
        if not self.is_recorded or not self._is_stream:
            return None
        if self._is_too_large:
            raise EventTooLarge
        chunks = []
        for data in self._events:
            self._is_done = self._is_done or data.strip() == DONE
            chunk = None if self._is_done else _parse_object(data)
            # LiteLLM makes errors of a stream known.
            if chunk is not None and "error" not in chunk:
                chunks.append(chunk)
        self._events.clear()
        return chunks

    def read_whole(self) -> dict[str, Any] | None:
        """Return an answer that is not streamed; ``None`` if it is not recorded."""
        answer = _parse_object(self._whole) if self.is_recorded and not self._is_stream else None
        return answer if answer is not None and isinstance(answer.get("choices"), list) else None


ANSWER: ContextVar[RecordedAnswer] = ContextVar("enginix_answer")


def record_answers(session: httpx.AsyncClient) -> None:
    """Let a session's responses go to the :class:`RecordedAnswer` of the request that they belong to.

    It no longer follows redirects: the gateway connects to the servers of its description alone.
    """
    session.follow_redirects = False
    session.event_hooks = {"request": [_ask_uncompressed], "response": [_record_response]}


async def _ask_uncompressed(request: httpx.Request) -> None:
    request.headers["accept-encoding"] = "identity"


async def _record_response(response: httpx.Response) -> None:
    answer = ANSWER.get(None)
    if answer is not None and response.has_redirect_location:
        answer.is_redirect = True
    elif (
        answer is not None
        and response.is_success
        and response.headers.get("content-encoding", "identity") == "identity"
    ):
        answer.begin(response.request.url.path)
        response.stream = _RecordedStream(cast("httpx.AsyncByteStream", response.stream), answer)


class _RecordedStream(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, answer: RecordedAnswer) -> None:
        self._stream, self._answer = stream, answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for raw in self._stream:
            self._answer.feed(raw)
            yield raw
        self._answer.end()

    async def aclose(self) -> None:
        await self._stream.aclose()


def _is_chat(path: str) -> bool:
    return path.endswith("/chat/completions")


def _parse_object(raw: str | bytearray) -> dict[str, Any] | None:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
