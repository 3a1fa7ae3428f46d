"""The auth middleware in front of LiteLLM: checks keys, routes, sizes, parameters, limits and connections.

LiteLLM's proxy has hundreds of routes, and accepts parameters that no server honours. The middleware passes
OpenAI's few routes only. It refuses by name every parameter that LiteLLM would drop, or would take as an
order to itself (mock_response, api_base, num_retries).
"""

from __future__ import annotations

import asyncio
import json
import math
import time
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Any
from urllib.parse import urlsplit

from enginix.gateway.answering import Answering, CheckedRequest
from enginix.gateway.balancer import Balancer
from enginix.gateway.client_errors import restore_parameter_names
from enginix.gateway.exchange import SCOPE, App, Message, Receive, Scope, Send
from enginix.gateway.keys import Caller, Keys
from enginix.gateway.metrics import CONTENT_TYPE, GatewayMetrics, RequestMeter
from enginix.gateway.rate_limits import RateLimits
from enginix.gateway.request import ROUTES, RequestRejected, check_openai_request
from enginix.gateway.response_rewrite import encode_event, encode_json
from enginix.gateway.spec import BackendServer, GatewaySpec
from enginix.ports import is_loopback_host

__all__ = ["SCOPE", "AuthMiddleware"]
MODELS = "/v1/models"
HEALTH = ("/health/live", "/health/ready")
_READING = ("GET", "HEAD")
METRICS = "/metrics"
# Deeper than any message; parsers of the servers behind crash at far deeper nesting
# (docs/reference/triton.md, Faults).
_MAX_DEPTH = 32
# Status that servers log for a request that its client has left.
_CLIENT_GONE = 499
# Texts of one request that are answered at the same time.
_PARALLEL_PROMPTS = 8


class AuthMiddleware:
    """An ASGI application around another.

    Args:
        app: LiteLLM's proxy.
        ready: returns the state for ``/health/ready``: ready or not, and the state of each model.
        log: receives one line for each request, without any text of a client.
        answers: tells whether a server is known to answer; others are tried last.

    Attributes:
        start_failure: reason why the application did not start, if it failed.
    """

    def __init__(
        self,
        app: App,
        spec: GatewaySpec,
        keys: Keys,
        ready: Callable[[], tuple[bool, dict[str, Any]]],
        log: Callable[[str], None],
        answers: Callable[[BackendServer], bool] = lambda _: True,
    ) -> None:
        self._app, self._spec, self._keys, self._ready, self._log = app, spec, keys, ready, log
        self._balancer = Balancer(spec, answers)
        self._rates = RateLimits()
        pairs = [
            (model, caller.name)
            for caller in keys.callers
            for model in spec.models
            if caller.client is None or not caller.client.models or model in caller.client.models
        ]
        self._metrics = GatewayMetrics(lambda: ready()[1], pairs)
        self._running: Counter[str] = Counter()
        self.start_failure = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["path"].startswith("/health/"):
            await self._health(scope, send)
        else:
            await self._request(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass start and stop on to LiteLLM, and keep the reason of a failed start."""

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
        except RequestRejected as e:
            await _send_json(send, e.status, e.as_json())
            return
        if scope["method"] not in _READING and scope["path"] in HEALTH:
            await _send_json(send, 405, _unknown_route(scope).as_json(), [(b"allow", b"GET, HEAD")])
        elif scope["path"] == "/health/live":
            await _send_json(send, 200, {"live": True})
        elif scope["path"] == "/health/ready":
            ready, servers = self._ready()
            await _send_json(send, 200 if ready else 503, {"ready": ready, "models": servers})
        else:
            await _send_json(send, 404, _unknown_route(scope).as_json())

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = _ClientRequest(scope, receive, send)
        begin = time.monotonic()
        try:
            if scope["method"] == "OPTIONS" and _list_methods(scope["path"]):
                # A browser asks so before its request, without a key.
                raise _unknown_route(scope)
            caller = self._caller(scope)
            request.caller = caller.name
            if not self._keys.asked:
                _refuse_web_page(scope)
            _refuse_two_lengths(scope)
            _refuse_query(scope)
            await self._serve(request, caller)
        except RequestRejected as e:
            await self._refuse(request, e)
        except _ClientGone:
            request.status = _CLIENT_GONE
        except Exception as e:
            # LiteLLM's own; its text may hold what the client sent.
            await self._refuse(request, RequestRejected("the gateway failed on this request", None, 500))
            request.error = f"unexpected {type(e).__name__}"
        finally:
            # Prometheus asks every few seconds.
            if scope["path"] != METRICS or request.status != 200:
                self._record(request, time.monotonic() - begin)

    def _record(self, request: _ClientRequest, seconds: float) -> None:
        """Count and log a request that has ended."""
        self._metrics.count_request(request.model, request.caller, request.outcome, request.status)
        method, path = request.scope["method"], _replace_unprintable(request.scope["path"])
        reason = f": {_replace_unprintable(request.error)}" if request.error else ""
        self._log(
            f"{method} {path} {request.status} {request.caller} {_replace_unprintable(request.model)} "
            f"{seconds * 1000:.0f} ms {request.id}{reason}"
        )

    async def _refuse(self, request: _ClientRequest, error: RequestRejected) -> None:
        request.error = error.message.split("\n", 1)[0]
        if request.status == 0:
            await request.refuse(error)
        else:
            await request.end_stream(error.as_json())

    def _caller(self, scope: Scope) -> Caller:
        headers = [v for k, v in scope["headers"] if k == b"authorization"]
        word, _, key = (headers[0].decode("latin-1") if len(headers) == 1 else "").partition(" ")
        caller = self._keys.caller(key.strip() if word.lower() == "bearer" else None)
        if caller is None:
            reason = "unknown key" if headers else "no key is given: Authorization: Bearer KEY"
            raise RequestRejected(reason, None, 401, "invalid_api_key")
        return caller

    async def _serve(self, request: _ClientRequest, caller: Caller) -> None:
        scope = request.scope
        path, method = scope["path"], scope["method"]
        if path == METRICS and method in _READING:
            await self._send_metrics(request, caller)
        elif caller.is_monitor:
            raise RequestRejected(f"this key reads {METRICS} alone", None, 403)
        elif path in ROUTES and method == "POST":
            body = await self._body(request)
            model = self._model(body.get("model"), caller)
            request.model = model
            is_triton = self._spec.is_triton(model)
            check_openai_request(ROUTES[path], body, is_triton=is_triton)
            question = CheckedRequest.compose(
                path, body, model, request.id, is_triton=is_triton, limits=self._spec.limits
            )
            with self._place(caller):
                self._rates.take(caller, question.prompts)
                with self._metrics.measure(model, caller.name) as meter:
                    await request.while_connected(self._answer(request, question, caller, meter))
        elif path != METRICS and method in _READING and method in _list_methods(path):
            await request.answer(200, self._models(caller, path.removeprefix(MODELS).removeprefix("/")))
        else:
            raise _unknown_route(scope)

    async def _send_metrics(self, request: _ClientRequest, caller: Caller) -> None:
        # They name all clients and models.
        if caller.client is not None:
            raise RequestRejected(f"{METRICS} is for the operator's key, and for metricsKeyFile's", None, 403)
        await request.answer_raw(200, self._metrics.render().encode(), CONTENT_TYPE)

    async def _answer(
        self, request: _ClientRequest, question: CheckedRequest, caller: Caller, meter: RequestMeter
    ) -> None:
        client = caller.client
        max_parallel = client.parallel_requests if client and client.parallel_requests else _PARALLEL_PROMPTS
        answering = Answering(
            self._app, self._balancer, question, caller, min(max_parallel, _PARALLEL_PROMPTS), meter
        )
        try:
            if question.is_stream:
                async with aclosing(answering.stream()) as stream:
                    async for raw in stream:
                        await request.stream(raw)
                await request.end_stream(answering.error)
                request.error = answering.error["error"]["message"] if answering.error else ""
            else:
                await request.answer(200, await answering.whole())
            if not request.error:
                meter.end_answer()
        except RequestRejected as e:
            raise restore_parameter_names(e, question.body) from e
        finally:
            self._rates.use(caller, answering.tokens)

    @contextmanager
    def _place(self, caller: Caller) -> Iterator[None]:
        """Hold one of the places for running requests.

        Raises:
            RequestRejected: all places are taken.
        """
        client_limit = caller.client.parallel_requests if caller.client else 0
        for limit, running in (
            (self._spec.limits.max_parallel_requests, self._running.total()),
            (client_limit, self._running[caller.name]),
        ):
            if 0 < limit <= running:
                # A place may become free at any moment.
                reason = "too many requests run; try again later"
                raise RequestRejected(reason, None, 429, "rate_limit_exceeded", retry_after=1)
        self._running[caller.name] += 1
        try:
            yield
        finally:
            self._running[caller.name] -= 1

    def _model(self, name: Any, caller: Caller) -> str:
        if name is None:
            raise RequestRejected("model is missing", "model")
        if not isinstance(name, str):
            raise RequestRejected("model: not a text", "model")
        model = self._spec.resolve(name)
        allowed = caller.client.models if caller.client else ()
        if model is None or (allowed and model not in allowed):
            shown_name = name if len(name) <= 64 else f"{name[:64]}…"
            raise RequestRejected(
                f"model {shown_name!r} does not exist, or this key may not use it",
                "model",
                404,
                "model_not_found",
            )
        return model

    def _models(self, caller: Caller, name: str) -> dict[str, Any]:
        """Answer ``GET /v1/models`` and ``GET /v1/models/NAME``."""
        if name:
            self._model(name, caller)
            return _model_row(name)
        allowed = caller.client.models if caller.client else ()
        every = [*self._spec.models, *self._spec.aliases]
        names = [n for n in every if not allowed or self._spec.resolve(n) in allowed]
        return {"object": "list", "data": [_model_row(n) for n in names]}

    async def _body(self, request: _ClientRequest) -> dict[str, Any]:
        limits = self._spec.limits
        encodings = [v for k, v in request.scope["headers"] if k == b"content-encoding"]
        if any(v.strip().lower() not in (b"", b"identity") for v in encodings):
            raise RequestRejected(
                "Content-Encoding: a compressed request is not read; send it as it is", None, 415
            )
        try:
            raw = await asyncio.wait_for(request.read(limits.max_body_bytes), limits.body_seconds)
        except asyncio.TimeoutError as e:
            raise RequestRejected(
                f"the request was not sent within {limits.body_seconds} s", None, 408
            ) from e
        try:
            # As bytes, json would also read UTF-16 and UTF-32.
            body = json.loads(raw.decode("utf-8-sig"), parse_constant=_reject_constant)
            # Half a surrogate pair is not a character; it would become a question mark on the way.
            json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError as e:
            raise RequestRejected(
                "the request has half a surrogate pair (\\ud800 to \\udfff), which is not text"
            ) from e
        except (ValueError, RecursionError) as e:
            # A parser's message may quote the text.
            where = f" at character {e.pos}" if isinstance(e, json.JSONDecodeError) else ""
            raise RequestRejected(f"the request is not JSON{where}") from e
        if not isinstance(body, dict):
            raise RequestRejected("the request is not a JSON object")
        if _is_nested_deeper(body, _MAX_DEPTH):
            raise RequestRejected(f"the request is nested deeper than {_MAX_DEPTH}")
        return body


class _ClientGone(Exception):
    """The client has closed its connection."""


class _ClientRequest:
    """One request of a client, and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self.caller, self.model, self.error = "-", "-", ""
        self.id = uuid.uuid4().hex
        self.status = 0

    @property
    def outcome(self) -> str:
        """Return how the request has ended."""
        if self.status == _CLIENT_GONE:
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
        await _send_json(self._send, status, body, [(b"x-request-id", self.id.encode()), *more])

    async def refuse(self, error: RequestRejected) -> None:
        """Send an error."""
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
            _ClientGone: the client closed its connection.
        """
        parts, size = [], 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _ClientGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > max_bytes:
                raise RequestRejected(f"the request is larger than {max_bytes} bytes", None, 413)
            if not message.get("more_body"):
                return b"".join(parts)

    async def while_connected(self, answering: Coroutine[Any, Any, None]) -> None:
        """Run the answering, and cancel it when the client leaves, which frees its place at the server.

        Raises:
            _ClientGone: the client closed its connection.
        """
        task, watching = asyncio.ensure_future(answering), asyncio.ensure_future(self._until_gone())
        try:
            await asyncio.wait({task, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise _ClientGone
            task.result()
        finally:
            for started in (task, watching):
                started.cancel()
            await asyncio.wait({task, watching})

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _refuse_web_page(scope: Scope) -> None:
    """Refuse a browser's request for a web page of another machine: without keys, any page could ask.

    Browsers name the page's address in ``Origin`` in each POST request, also where a name was bound to this
    machine's address (RFC 6454). Programs send none; pages of this machine may ask.

    Raises:
        RequestRejected: the page is not one of this machine.
    """
    for name, value in scope["headers"]:
        if name == b"origin" and not _is_of_this_machine(value.decode("latin-1")):
            raise RequestRejected(
                "a web page of another address asks, and this gateway has no keys; give it keys", None, 403
            )


def _is_of_this_machine(origin: str) -> bool:
    try:
        return is_loopback_host(urlsplit(origin).hostname or "")
    except ValueError:
        return False


def _refuse_two_lengths(scope: Scope) -> None:
    """Refuse a request whose body has two lengths: a proxy in front may read another end than this server.

    RFC 9112, section 6.1.

    Raises:
        RequestRejected: the request has both Content-Length and Transfer-Encoding; its connection is closed.
    """
    names = {k for k, _ in scope["headers"]}
    if {b"content-length", b"transfer-encoding"} <= names:
        raise RequestRejected(
            "the request has both Content-Length and Transfer-Encoding", None, closes_connection=True
        )


def _refuse_query(scope: Scope) -> None:
    """Refuse a query string: LiteLLM would take parameters from it, before those of the body.

    Raises:
        RequestRejected: the request has a query string.
    """
    if scope.get("query_string"):
        raise RequestRejected("the address has a query string (?…); parameters belong in the body, as JSON")


def _list_methods(path: str) -> tuple[str, ...]:
    """Return the methods of a route; none where there is no such route."""
    if path in ROUTES:
        return ("POST",)
    return _READING if path in (MODELS, METRICS, *HEALTH) or path.startswith(f"{MODELS}/") else ()


def _unknown_route(scope: Scope) -> RequestRejected:
    """Return the refusal of a method or path (RFC 9110, 15.5.5 and 15.5.6)."""
    path, methods = _replace_unprintable(scope["path"]), _list_methods(scope["path"])
    what = f"{path}: no such route for {scope['method']}"
    return RequestRejected(what, None, 405 if methods else 404, methods=methods)


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _is_nested_deeper(value: Any, depth: int) -> bool:
    """Tell whether containers are nested deeper than ``depth``; without recursion."""
    level = [value]
    for _ in range(depth):
        level = [
            inner
            for v in level
            if isinstance(v, dict | list)
            for inner in (v.values() if isinstance(v, dict) else v)
        ]
        if not level:
            return False
    return any(isinstance(v, dict | list) for v in level)


def _replace_unprintable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:300])


def _model_row(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "enginix"}


async def _send_json(
    send: Send, status: int, body: Mapping[str, Any], more: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    # uvicorn frames the body.
    headers = [(b"content-type", b"application/json"), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": encode_json(body)})
