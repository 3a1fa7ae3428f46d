"""One request of a client over ASGI: its body read, its answer, refusal or stream sent."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from enginix.gateway.exchange import Receive, Scope, Send
from enginix.gateway.request import RequestRejected
from enginix.gateway.response_rewrite import encode_event, encode_json

# Status that servers log for a request that its client has left.
CLIENT_GONE = 499


class ClientGone(Exception):
    """The client has closed its connection."""


class ClientRequest:
    """One request of a client, and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self.caller, self.model, self.error = "-", "-", ""
        self.id = uuid.uuid4().hex
        self.status = 0

    @property
    def outcome(self) -> str:
        """Return how the request has ended."""
        if self.status == CLIENT_GONE:
            return "gone"
        if self.status >= 500 or (self.status < 400 and self.error):
            return "failed"
        return "refused" if self.status >= 400 else "answered"

    async def answer_raw(self, status: int, body: bytes, content_type: bytes) -> None:
        """Send a whole answer that is not JSON."""
        self.status = status
        headers = [(b"content-type", content_type), (b"x-request-id", self.id.encode())]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def answer(
        self, status: int, body: Mapping[str, Any], more: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """Send a whole answer, with more headers."""
        self.status = status
        await send_json(self._send, status, body, [(b"x-request-id", self.id.encode()), *more])

    async def refuse(self, error: RequestRejected) -> None:
        more: list[tuple[bytes, bytes]] = []
        if error.retry_after is not None:
            more.append((b"retry-after", str(math.ceil(error.retry_after)).encode()))
        if error.methods:
            more.append((b"allow", ", ".join(error.methods).encode()))
        if error.closes_connection:
            more.append((b"connection", b"close"))
        await self.answer(error.status, error.as_json(), more)

    async def stream(self, raw: bytes) -> None:
        """Send a part of a stream; its headers go with the first one."""
        if self.status == 0:
            self.status = 200
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-cache"),
                (b"x-request-id", self.id.encode()),
            ]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": raw, "more_body": True})

    async def end_stream(self, error: Mapping[str, Any] | None = None) -> None:
        """End a stream, with an error's event where it failed."""
        raw = b"" if error is None else encode_event(dict(error))
        await self._send({"type": "http.response.body", "body": raw, "more_body": False})

    async def read(self, max_bytes: int) -> bytes:
        """Return the request's body.

        Raises:
            RequestRejected: the body is larger than ``max_bytes``.
            ClientGone: the client closed its connection.
        """
        parts, size = [], 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > max_bytes:
                raise RequestRejected(f"the request is larger than {max_bytes} bytes", None, 413)
            if not message.get("more_body"):
                return b"".join(parts)

    async def while_connected(self, answering: Coroutine[Any, Any, None]) -> None:
        """Run the answering, and cancel it when the client leaves, which frees its place at the server.

        Raises:
            ClientGone: the client closed its connection.
        """
        task, watching = asyncio.ensure_future(answering), asyncio.ensure_future(self._until_gone())
        try:
            await asyncio.wait({task, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientGone
            task.result()
        finally:
            for started in (task, watching):
                started.cancel()
            await asyncio.wait({task, watching})

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


async def send_json(
    send: Send, status: int, body: Mapping[str, Any], more: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    # uvicorn frames the body.
    headers = [(b"content-type", b"application/json"), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": encode_json(body)})
