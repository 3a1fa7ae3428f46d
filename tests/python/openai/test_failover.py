"""A request goes to the next server until one has a first piece; a stand-in is in LiteLLM's place."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest

from enginix.gateway.answering import Answering, CheckedRequest
from enginix.gateway.balancer import Balancer
from enginix.gateway.keys import ANYONE
from enginix.gateway.request import RequestRejected
from enginix.gateway.spec import BackendServer, GatewaySpec, parse_gateway_spec

NAMES = ("a", "b", "c")
PIECE = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "x"}}]}
ROLE = {
    "object": "chat.completion.chunk",
    "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}],
}
LAST = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
ERROR = {"error": {"message": "gone", "code": "502"}}


class StandIn:
    """Answers for each deployment as a test sets."""

    def __init__(self, **behaviours: str) -> None:
        self.behaviours = behaviours
        self.asked: list[str] = []
        self.bodies: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = json.loads((await receive())["body"])
        self.bodies.append(body)
        name = NAMES[int(body["model"].partition("#")[2] or 0)] if "#" in body["model"] else body["model"]
        self.asked.append(name)
        how = self.behaviours.get(name, "answers")
        if how == "crashes":
            raise OSError("odd")
        if how.isdigit():
            await self._send(send, int(how), "application/json", {"error": {"message": "no", "code": how}})
        elif not body.get("stream"):
            found = {"choices": [{"index": 0, "message": {"content": name}}], "usage": {"total_tokens": 3}}
            await self._send(send, 200, "application/json", found)
        else:
            rows = {
                "answers": [ROLE, PIECE, LAST, "[DONE]"],
                "breaks-first": [ROLE, ERROR],
                "ends-first": [ROLE],
                "breaks-later": [ROLE, PIECE, ERROR],
                "ends-later": [ROLE, PIECE],
            }[how]
            await self._send(send, 200, "text/event-stream", *rows)

    async def _send(self, send: Any, status: int, kind: str, *rows: Any) -> None:
        headers = [(b"content-type", kind.encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for row in rows:
            raw = (row if isinstance(row, str) else json.dumps(row)).encode()
            if kind == "text/event-stream":
                raw = b"data: " + raw + b"\n\n"
            await send({"type": "http.response.body", "body": raw, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def description(strategy: str = "simple-shuffle") -> GatewaySpec:
    servers = [{"kind": "openai", "url": f"http://{n}:1/v1", "model": "x"} for n in NAMES]
    other = {"kind": "openai", "url": "http://d:1/v1", "model": "x"}
    models = {"m": servers, "other": [other]}
    found = {"version": 1, "name": "g", "models": models, "fallbacks": {"m": ["other"]}, "strategy": strategy}
    return parse_gateway_spec(found, "test")


def ask(app: StandIn, *, stream: bool, silent: str = "", balancer: Balancer | None = None) -> Answering:
    spec = description()
    balancer = balancer or Balancer(spec, lambda s: s.url[7] not in silent)
    body = {"model": "m", "messages": [], "stream": stream}
    question = CheckedRequest.compose(
        "/v1/chat/completions", body, "m", "r", is_triton=False, limits=spec.limits
    )
    answering = Answering(app, balancer, question, ANYONE, 1)

    async def run() -> None:
        if stream:
            events = [e async for e in answering.stream()]
            answering.text = b"".join(events).decode()  # type: ignore[attr-defined]
        else:
            answering.text = json.dumps(await answering.whole())  # type: ignore[attr-defined]

    asyncio.run(run())
    return answering


FAILURES = ("502", "503", "504", "500", "429", "401", "404")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", FAILURES)
def test_the_next_server_answers(how: str, stream: bool) -> None:
    for _ in range(6):
        app = StandIn(a=how, b=how)
        answering = ask(app, stream=stream)
        assert answering.error is None and app.asked[-1] == "c" and len(set(app.asked)) == len(app.asked)


@pytest.mark.parametrize("how", ["breaks-first", "ends-first"])
def test_a_stream_that_ends_before_its_first_piece_is_begun_elsewhere(how: str) -> None:
    for _ in range(6):
        app = StandIn(a=how, b=how)
        answering = ask(app, stream=True)
        assert answering.error is None and app.asked[-1] == "c"
        # Nothing of the broken ones is shown.
        assert answering.text.count('"role"') == 1 and answering.text.endswith("[DONE]\n\n")  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["breaks-later", "ends-later"])
def test_a_stream_that_has_begun_is_begun_nowhere_else(how: str) -> None:
    app = StandIn(a=how, b=how, c=how)
    answering = ask(app, stream=True)
    assert len(app.asked) == 1
    assert answering.error is not None and "[DONE]" not in answering.text  # type: ignore[attr-defined]


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_is_the_clients(stream: bool) -> None:
    app = StandIn(a="400", b="400", c="400")
    with pytest.raises(RequestRejected) as refused:
        ask(app, stream=stream)
    assert refused.value.status == 400 and len(app.asked) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_fallbacks_come_when_no_server_is_left(stream: bool) -> None:
    app = StandIn(a="503", b="502", c="504")
    ask(app, stream=stream)
    assert sorted(app.asked[:3]) == ["a", "b", "c"] and app.asked[3:] == ["other"]
    app = StandIn(a="503", b="503", c="503", other="503")
    with pytest.raises(RequestRejected) as refused:
        ask(app, stream=stream)
    assert refused.value.status == 503 and len(app.asked) == 4


def test_silent_servers_are_not_asked_while_others_answer() -> None:
    app = StandIn(a="503", b="503")
    for _ in range(20):
        ask(app, stream=True, silent="ab")
    assert Counter(app.asked) == {"c": 20}
    # Where nothing else is left they are: it may be back already.
    app = StandIn(c="503", other="503")
    ask(app, stream=True, silent="ab")
    assert len(app.asked) == 3 and app.asked[-1] in "ab"


def test_one_that_failed_rests_and_is_asked_again() -> None:
    now = [0.0]
    spec = description()
    balancer = Balancer(spec, lambda _: True, lambda: now[0])
    app = StandIn(a="503")
    while "a" not in app.asked:
        ask(app, stream=True, balancer=balancer)
    app = StandIn()
    for _ in range(30):
        ask(app, stream=True, balancer=balancer)
    assert "a" not in app.asked
    now[0] += 5
    while "a" not in app.asked:
        ask(app, stream=True, balancer=balancer)


def test_the_fastest_is_asked_first() -> None:
    balancer = Balancer(description("latency-based-routing"), lambda _: True)
    for name, seconds in zip(NAMES, (3.0, 1.0, 2.0), strict=True):
        server = BackendServer("openai", f"http://{name}:1/v1", "x")
        balancer.succeeded(server, seconds)
    order = [c.server.url[7] for c in balancer.candidates("m")]
    assert order == ["b", "c", "a", "d"]


def test_only_the_deployment_chosen_is_named() -> None:
    app = StandIn()
    answering = ask(app, stream=True)
    [body] = app.bodies
    # Limits and metrics count its tokens; the client, which did not ask for the usage, does not get it.
    assert body["model"].startswith("m#") and body["stream_options"] == {"include_usage": True}
    assert "usage" not in answering.text  # type: ignore[attr-defined]
