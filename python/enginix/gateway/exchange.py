"""One composed request to LiteLLM's application, and its answer as it comes."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypeAlias

from enginix.gateway.call import CALL, TritonCall
from enginix.gateway.keys import Caller
from enginix.gateway.recorded_answer import ANSWER, RecordedAnswer

Message: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

# Keys of a composed request's scope: the caller, and the one deployment that may answer.
SCOPE = "enginix.caller"
DEPLOYMENT = "enginix.deployment"
# Messages that LiteLLM may send before the client has taken them.
_AHEAD = 16


class NoAnswer(Exception):
    """The application ended without a whole answer."""


class Exchange:
    """A request under way.

    Args:
        path: one of the routes.
        body: checked parameters, with the deployment as ``model``.
        call: the call of :mod:`enginix.gateway.handler` to a Triton server.

    Attributes:
        recorded_answer: the answer of a server with OpenAI's interface, as it comes.
    """

    def __init__(
        self, app: App, path: str, caller: Caller, body: Mapping[str, Any], call: TritonCall | None = None
    ) -> None:
        self.call = call
        self.recorded_answer = RecordedAnswer(path, is_stream=bool(body.get("stream")))
        self._held: deque[Message] = deque()
        self._arrived, self._taken, self._gone = asyncio.Event(), asyncio.Event(), asyncio.Event()
        raw = json.dumps(body, ensure_ascii=False).encode()
        scope = compose_scope(path, caller, str(body["model"]), len(raw))
        self._task = asyncio.ensure_future(self._run(app, scope, raw))
        self._task.add_done_callback(lambda _: self._arrived.set())

    async def start(self) -> tuple[int, str]:
        """Return status and content type."""
        message = await self._next()
        headers = {k.lower(): v for k, v in message.get("headers", ())}
        return int(message["status"]), headers.get(b"content-type", b"").decode("latin-1")

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the body in the pieces that LiteLLM makes."""
        more = True
        while more:
            message = await self._next()
            more = bool(message.get("more_body"))
            yield message.get("body", b"")

    async def read(self) -> bytes:
        """Return the whole body."""
        return b"".join([raw async for raw in self.body()])

    async def close(self) -> None:
        """End the request, which frees its place at the server behind."""
        self._gone.set()
        self._taken.set()
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(self, app: App, scope: Scope, raw: bytes) -> None:
        if self.call is not None:
            CALL.set(self.call)
        ANSWER.set(self.recorded_answer)
        sent = False

        async def receive() -> Message:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": raw, "more_body": False}
            await self._gone.wait()
            return {"type": "http.disconnect"}

        await app(scope, receive, self._put)

    async def _put(self, message: Message) -> None:
        while len(self._held) >= _AHEAD and not self._gone.is_set():
            self._taken.clear()
            await self._taken.wait()
        self._held.append(message)
        self._arrived.set()

    async def _next(self) -> Message:
        while not self._held:
            if self._task.done():
                self._task.result()
                raise NoAnswer
            self._arrived.clear()
            await self._arrived.wait()
        self._taken.set()
        return self._held.popleft()


def compose_scope(path: str, caller: Caller, deployment: str, size: int) -> Scope:
    """Return a request's scope for LiteLLM without any part of the client's: LiteLLM obeys all parts."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("ascii"),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(size).encode())],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 80),
        SCOPE: caller,
        DEPLOYMENT: deployment,
    }
