"""The auth middleware in front of LiteLLM: each request passes its checks, holds a place, and is answered.

LiteLLM's proxy has hundreds of routes, and accepts parameters that no server honours. The middleware passes
OpenAI's few routes only. It refuses by name every parameter that LiteLLM would drop, or would take as an
order to itself (mock_response, api_base, num_retries).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from enginix.gateway.answering import Answering, CheckedRequest
from enginix.gateway.balancer import Balancer
from enginix.gateway.client_errors import restore_parameter_names
from enginix.gateway.client_request import CLIENT_GONE, ClientGone, ClientRequest, send_json
from enginix.gateway.exchange import App, Message, Receive, Scope, Send
from enginix.gateway.keys import Caller, Keys
from enginix.gateway.metrics import CONTENT_TYPE, GatewayMetrics, RequestMeter
from enginix.gateway.model_access import list_models, resolve_model
from enginix.gateway.rate_limits import RateLimits
from enginix.gateway.request import ROUTES, RequestRejected, check_openai_request
from enginix.gateway.request_body import read_json_body
from enginix.gateway.request_refusals import (
    HEALTH,
    METRICS,
    MODELS,
    READING,
    list_methods,
    make_route_error,
    refuse_query,
    refuse_two_lengths,
    refuse_web_page,
    replace_unprintable,
)
from enginix.gateway.spec import BackendServer, GatewaySpec

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
            refuse_query(scope)
        except RequestRejected as e:
            await send_json(send, e.status, e.as_json())
            return
        if scope["method"] not in READING and scope["path"] in HEALTH:
            await send_json(send, 405, make_route_error(scope).as_json(), [(b"allow", b"GET, HEAD")])
        elif scope["path"] == "/health/live":
            await send_json(send, 200, {"live": True})
        elif scope["path"] == "/health/ready":
            ready, servers = self._ready()
            await send_json(send, 200 if ready else 503, {"ready": ready, "models": servers})
        else:
            await send_json(send, 404, make_route_error(scope).as_json())

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = ClientRequest(scope, receive, send)
        begin = time.monotonic()
        try:
            if scope["method"] == "OPTIONS" and list_methods(scope["path"]):
                # A browser asks so before its request, without a key.
                raise make_route_error(scope)
            caller = self._keys.authenticate(scope["headers"])
            request.caller = caller.name
            if not self._keys.asked:
                refuse_web_page(scope)
            refuse_two_lengths(scope)
            refuse_query(scope)
            await self._serve(request, caller)
        except RequestRejected as e:
            await self._refuse(request, e)
        except ClientGone:
            request.status = CLIENT_GONE
        except Exception as e:
            # LiteLLM's own; its text may hold what the client sent.
            await self._refuse(request, RequestRejected("the gateway failed on this request", None, 500))
            request.error = f"unexpected {type(e).__name__}"
        finally:
            # Prometheus asks every few seconds.
            if scope["path"] != METRICS or request.status != 200:
                self._record(request, time.monotonic() - begin)

    def _record(self, request: ClientRequest, seconds: float) -> None:
        """Count and log a request that has ended."""
        self._metrics.count_request(request.model, request.caller, request.outcome, request.status)
        method, path = request.scope["method"], replace_unprintable(request.scope["path"])
        reason = f": {replace_unprintable(request.error)}" if request.error else ""
        self._log(
            f"{method} {path} {request.status} {request.caller} {replace_unprintable(request.model)} "
            f"{seconds * 1000:.0f} ms {request.id}{reason}"
        )

    async def _refuse(self, request: ClientRequest, error: RequestRejected) -> None:
        request.error = error.message.split("\n", 1)[0]
        if request.status == 0:
            await request.refuse(error)
        else:
            await request.end_stream(error.as_json())

    async def _serve(self, request: ClientRequest, caller: Caller) -> None:
        scope = request.scope
        path, method = scope["path"], scope["method"]
        if path == METRICS and method in READING:
            await self._send_metrics(request, caller)
        elif caller.is_monitor:
            raise RequestRejected(f"this key reads {METRICS} alone", None, 403)
        elif path in ROUTES and method == "POST":
            body = await read_json_body(request, self._spec.limits)
            model = resolve_model(self._spec, body.get("model"), caller)
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
        elif path != METRICS and method in READING and method in list_methods(path):
            await request.answer(
                200, list_models(self._spec, caller, path.removeprefix(MODELS).removeprefix("/"))
            )
        else:
            raise make_route_error(scope)

    async def _send_metrics(self, request: ClientRequest, caller: Caller) -> None:
        # They name all clients and models.
        if caller.client is not None:
            raise RequestRejected(f"{METRICS} is for the operator's key, and for metricsKeyFile's", None, 403)
        await request.answer_raw(200, self._metrics.render().encode(), CONTENT_TYPE)

    async def _answer(
        self, request: ClientRequest, question: CheckedRequest, caller: Caller, meter: RequestMeter
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
