"""What stands before LiteLLM: keys, routes, sizes and parameters, and clients that vanish.

LiteLLM's proxy has hundreds of routes and answers requests with parameters that nobody honours; here are
only OpenAI's few, and everything that LiteLLM would drop, or take as an order to itself (mock_response,
api_base, num_retries), is refused by name.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from enginix.openai import clean
from enginix.openai.keys import Caller, Keys
from enginix.openai.request import PARAMETERS, ROUTES, Refused, check
from enginix.openai.spec import Spec

Message: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

SCOPE = "enginix.caller"
MODELS = "/v1/models"
# Deeper than any message; parsers of the servers behind crash far beyond (docs/triton.md, faults).
_MAX_DEPTH = 32
# Status that servers log for a request whose client has gone.
_CLIENT_GONE = 499


class Gate:
    """An ASGI application around another.

    Args:
        app: LiteLLM's proxy.
        ready: state of the servers behind, for ``/health/ready``: whether to send requests, and each one's.
        log: gets one line a request; no text of a client is in it.

    Attributes:
        start_failure: why the application did not start, where it did not.
    """

    def __init__(
        self,
        app: App,
        spec: Spec,
        keys: Keys,
        ready: Callable[[], tuple[bool, dict[str, Any]]],
        log: Callable[[str], None],
    ) -> None:
        self._app, self._spec, self._keys, self._ready, self._log = app, spec, keys, ready, log
        self._running: Counter[str] = Counter()
        self.start_failure = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's request."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["path"].startswith("/health/"):
            await self._health(scope, send)
        else:
            await self._request(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the start and the end on to LiteLLM, and keeps why a start failed."""

        async def observed_send(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                lines = str(message.get("message") or "").strip().splitlines()
                self.start_failure = self.start_failure or (lines[-1].strip() if lines else "")
            await send(message)

        try:
            await self._app(scope, receive, observed_send)
        except Exception as e:
            self.start_failure = self.start_failure or f"{type(e).__name__}: {e}"
            raise

    async def _health(self, scope: Scope, send: Send) -> None:
        try:
            _refuse_query(scope)
        except Refused as e:
            await _answer(send, e.status, e.as_json())
            return
        if scope["path"] == "/health/live":
            await _answer(send, 200, {"live": True})
        elif scope["path"] == "/health/ready":
            ready, servers = self._ready()
            await _answer(send, 200 if ready else 503, {"ready": ready, "models": servers})
        else:
            await _answer(send, 404, _no_route(scope).as_json())

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = _Request(scope, receive, send)
        begin = time.monotonic()
        try:
            caller = self._caller(scope)
            request.caller = caller.name
            _refuse_query(scope)
            await self._serve(request, caller)
        except Refused as e:
            request.error = e.message
            if not request.started:
                await _answer(request.send, e.status, e.as_json())
        except _Gone:
            request.status = _CLIENT_GONE
        except Exception as e:
            # LiteLLM's own; its text may hold what the client sent.
            request.error = f"unexpected {type(e).__name__}"
            if request.started:
                raise
            failed = Refused("the gateway failed on this request", None, 500)
            await _answer(request.send, 500, failed.as_json())
        finally:
            took = (time.monotonic() - begin) * 1000
            line = f"{scope['method']} {_printable(scope['path'])} {request.status} {request.caller}"
            reason = f": {_printable(request.error)}" if request.error else ""
            self._log(f"{line} {_printable(request.model)} {took:.0f} ms{reason}")

    def _caller(self, scope: Scope) -> Caller:
        headers = [v for k, v in scope["headers"] if k == b"authorization"]
        word, _, key = (headers[0].decode("latin-1") if len(headers) == 1 else "").partition(" ")
        caller = self._keys.caller(key.strip() if word.lower() == "bearer" else None)
        if caller is None:
            said = "this key is not known here" if headers else "no key is given: Authorization: Bearer KEY"
            raise Refused(said, None, 401, "invalid_api_key")
        return caller

    async def _serve(self, request: _Request, caller: Caller) -> None:
        scope = request.scope
        path, method = scope["path"], scope["method"]
        if path in ROUTES and method == "POST":
            body = await self._body(request)
            model = self._model(body.get("model"), caller)
            request.model = model
            check(ROUTES[path], body, triton=self._spec.is_triton(model))
            with self._place(caller):
                request.expect(ROUTES[path], body)
                await request.forward(self._app, _composed_scope(path, caller), _composed_body(body))
        elif path in ROUTES or method != "GET":
            raise Refused(f"{path}: no such route for {method}", None, 405 if path in ROUTES else 404)
        elif path == MODELS or path.startswith(f"{MODELS}/"):
            self._models(caller, path.removeprefix(MODELS).removeprefix("/"), request)
            await request.answer_models()
        else:
            raise _no_route(scope)

    @contextmanager
    def _place(self, caller: Caller) -> Iterator[None]:
        """A place among the requests that run; LiteLLM keeps those of clients that vanish for a minute.

        Raises:
            Refused: there is none.
        """
        most = caller.client.parallel_requests if caller.client else 0
        for limit, running in (
            (self._spec.limits.max_parallel_requests, self._running.total()),
            (most, self._running[caller.name]),
        ):
            if 0 < limit <= running:
                raise Refused("too many requests run; try again later", None, 429, "rate_limit_exceeded")
        self._running[caller.name] += 1
        try:
            yield
        finally:
            self._running[caller.name] -= 1

    def _model(self, name: Any, caller: Caller) -> str:
        if name is None:
            raise Refused("model is missing", "model")
        if not isinstance(name, str):
            raise Refused("model: not a text", "model")
        model = self._spec.resolve(name)
        allowed = caller.client.models if caller.client else ()
        if model is None or (allowed and model not in allowed):
            shown = name if len(name) <= 64 else f"{name[:64]}…"
            raise Refused(
                f"model {shown!r} does not exist, or this key may not use it", "model", 404, "model_not_found"
            )
        return model

    def _models(self, caller: Caller, name: str, request: _Request) -> None:
        if name:
            self._model(name, caller)
            request.models = [name]
            return
        allowed = caller.client.models if caller.client else ()
        every = [*self._spec.models, *self._spec.aliases]
        request.models = [n for n in every if not allowed or self._spec.resolve(n) in allowed]
        request.whole_list = True

    async def _body(self, request: _Request) -> dict[str, Any]:
        limits = self._spec.limits
        try:
            raw = await asyncio.wait_for(request.read(limits.max_body_bytes), limits.body_seconds)
        except asyncio.TimeoutError as e:
            raise Refused(f"the request was not sent within {limits.body_seconds} s", None, 408) from e
        try:
            body = json.loads(raw, parse_constant=_no_constant)
        except (ValueError, RecursionError) as e:
            # A parser's message may quote the text.
            where = f" at character {e.pos}" if isinstance(e, json.JSONDecodeError) else ""
            raise Refused(f"the request is not JSON{where}") from e
        if not isinstance(body, dict):
            raise Refused("the request is not a JSON object")
        if _deeper(body, _MAX_DEPTH):
            raise Refused(f"the request is nested deeper than {_MAX_DEPTH}")
        return body


class _Gone(Exception):
    """The client has closed its connection."""


class _Request:
    """One request: what came in, and what goes out."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self.caller, self.model, self.error = "-", "-", ""
        self.status = 0
        self.models: list[str] = []
        self.whole_list = False
        self._kind = b""
        self._held: Message | None = None
        self._failed = b""
        self._events = clean.Events()

    def expect(self, route: str, body: Mapping[str, Any]) -> None:
        """Prepares for the answer to a checked request."""
        options = body.get("stream_options") or {}
        prefix = "chatcmpl" if route == "chat" else "cmpl"
        self._events = clean.Events(
            f"{prefix}-{uuid.uuid4().hex}", body["model"], include_usage=bool(options.get("include_usage"))
        )

    @property
    def started(self) -> bool:
        """Whether a status has been sent."""
        return self.status != 0 and self._held is None

    async def send(self, message: Message) -> None:
        """Passes on what LiteLLM answers, cleaned."""
        if message["type"] == "http.response.start":
            await self._start(message)
        elif message["type"] == "http.response.body":
            await self._body(message)

    async def _start(self, message: Message) -> None:
        self.status = message["status"]
        headers = message.get("headers", [])
        self._kind = dict(headers).get(b"content-type", b"")
        # Versions, deployments and costs are nobody's business; a length may change.
        hidden = (b"x-litellm", b"llm_provider", b"content-length")
        message["headers"] = [(k, v) for k, v in headers if not k.lower().startswith(hidden)]
        if self.status >= 400:
            self._held = message
        else:
            await self._send(message)

    async def _body(self, message: Message) -> None:
        body, more = message.get("body", b""), bool(message.get("more_body"))
        if self._held is not None:
            self._failed += body
            if more:
                return
            start, self._held = self._held, None
            # LiteLLM says 429 where every server of a model has just failed.
            if self.status == 429 and clean.NONE_LEFT in self._failed:
                self.status = start["status"] = 503
            body = clean.error(self._failed, self.status)
            self.error = _message_of(body)
            await self._send(start)
        elif self._kind.startswith(b"text/event-stream"):
            body = self._events.feed(body, more=more)
            self.error = self._events.failed
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def read(self, most: int) -> bytes:
        """The body.

        Raises:
            Refused: larger than ``most``.
            _Gone: the client left.
        """
        parts, size = [], 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                raise Refused(f"the request is larger than {most} bytes", None, 413)
            if not message.get("more_body"):
                return b"".join(parts)

    async def forward(self, app: App, scope: Scope, body: bytes) -> None:
        """Lets LiteLLM answer a composed request; ends that when the client goes, which frees its place."""
        sent = False
        gone = asyncio.Event()

        async def receive() -> Message:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        scope["headers"] = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        answering = asyncio.ensure_future(app(scope, receive, self.send))
        watching = asyncio.ensure_future(self._until_gone())
        try:
            await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                gone.set()
                answering.cancel()
                await asyncio.wait({answering})
                raise _Gone
            answering.result()
        finally:
            answering.cancel()
            watching.cancel()

    async def answer_models(self) -> None:
        """``GET /v1/models``."""
        rows = [{"id": n, "object": "model", "created": 0, "owned_by": "enginix"} for n in self.models]
        await _answer(self.send, 200, {"object": "list", "data": rows} if self.whole_list else rows[0])

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _composed_scope(path: str, caller: Caller) -> Scope:
    """Return a request to LiteLLM in which nothing is the client's; LiteLLM takes orders from every part.

    Args:
        path: one of the routes.
    """
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
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 80),
        SCOPE: caller,
    }


def _composed_body(body: Mapping[str, Any]) -> bytes:
    """Return the body for LiteLLM: the checked parameters, without those that count as absent."""
    composed = {name: body[name] for name in PARAMETERS if body.get(name) is not None}
    return json.dumps(composed, ensure_ascii=False).encode("utf-8", "replace")


def _refuse_query(scope: Scope) -> None:
    """Refuse a query string: LiteLLM would take parameters from it, before those of the body.

    Raises:
        Refused: there is one.
    """
    if scope.get("query_string"):
        raise Refused("the address has a query string (?…); parameters belong in the body, as JSON")


def _no_route(scope: Scope) -> Refused:
    return Refused(f"{_printable(scope['path'])}: no such route", None, 404)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _deeper(value: Any, most: int) -> bool:
    """Whether containers are nested deeper than ``most``; without recursion."""
    level = [value]
    for _ in range(most):
        level = [
            inner
            for v in level
            if isinstance(v, dict | list)
            for inner in (v.values() if isinstance(v, dict) else v)
        ]
        if not level:
            return False
    return any(isinstance(v, dict | list) for v in level)


def _message_of(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"]).split("\n", 1)[0]
    except (ValueError, KeyError, TypeError):
        return ""


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:300])


async def _answer(send: Send, status: int, body: dict[str, Any]) -> None:
    raw = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": raw})
