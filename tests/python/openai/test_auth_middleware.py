"""The auth middleware, with a stand-in application instead of LiteLLM."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginix.gateway import response_rewrite
from enginix.gateway.auth_middleware import AuthMiddleware
from enginix.gateway.exchange import SCOPE
from enginix.gateway.keys import Keys
from enginix.gateway.spec import parse_gateway_spec

KEY, ALICE = "sk-" + "a" * 30, "sk-" + "b" * 30
CHAT = {"model": "m", "messages": [{"role": "user", "content": "secret words"}]}


class StandIn:
    """Answers as LiteLLM would, in a way that each test sets."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.scopes: list[Any] = []
        self.status, self.kind = 200, b"application/json"
        self.answer: list[bytes] = [b"{}"]
        self.hold = False
        self.cancelled = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        self.bodies.append(json.loads((await receive())["body"]))
        if self.hold:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        headers = [(b"content-type", self.kind), (b"x-litellm-cost", b"1"), (b"content-length", b"7")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        for part in self.answer:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class MiddlewareClient:
    """The auth middleware, and a client that speaks ASGI to it."""

    def __init__(self, directory: Path, *, has_keys: bool = True, **limits: int) -> None:
        for name, key in (("key", KEY), ("alice", ALICE)):
            (directory / name).write_text(key)
            (directory / name).chmod(0o600)
        server = {"kind": "triton", "url": "http://127.0.0.1:1", "model": "ensemble"}
        found = {
            "version": 1,
            "name": "gateway",
            "models": {"m": [server], "o": [{**server, "kind": "openai"}]},
            "aliases": {"alias": "m"},
            "keyFile": str(directory / "key"),
            "clients": {
                "alice": {"keyFile": str(directory / "alice"), "models": ["m"], "parallelRequests": 1}
            },
            "limits": limits,
        }
        if not has_keys:
            del found["keyFile"], found["clients"]
        spec = parse_gateway_spec(found, "test")
        self.app, self.log = StandIn(), list[str]()
        self.auth_middleware = AuthMiddleware(
            self.app, spec, Keys(spec), lambda: (False, {}), self.log.append
        )

    async def await_requests(self, count: int) -> None:
        """Wait until so many requests have come to the application."""
        deadline = time.monotonic() + 300
        while len(self.app.bodies) < count:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    async def ask(
        self,
        body: bytes | dict[str, Any] = b"",
        path: str = "/v1/chat/completions",
        method: str = "POST",
        headers: tuple[tuple[bytes, bytes], ...] = ((b"authorization", f"Bearer {KEY}".encode()),),
        leave: asyncio.Event | None = None,
        **more: Any,
    ) -> tuple[int, bytes, dict[bytes, bytes]]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        parts = [raw[i : i + 1000] for i in range(0, len(raw), 1000)] or [b""]
        sent: list[Any] = []

        async def receive() -> Any:
            if parts:
                return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}
            await (leave or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "headers": list(headers), **more}
        await self.auth_middleware(scope, receive, send)
        starts = [m for m in sent if m["type"] == "http.response.start"]
        whole = b"".join(m.get("body", b"") for m in sent if m["type"] == "http.response.body")
        return (starts[0]["status"], whole, dict(starts[0]["headers"])) if starts else (0, whole, {})

    def run(self, *args: Any, **more: Any) -> tuple[int, Any, dict[bytes, bytes]]:
        status, raw, headers = asyncio.run(self.ask(*args, **more))
        return status, json.loads(raw) if raw else None, headers


@pytest.fixture
def middleware(tmp_path: Path) -> MiddlewareClient:
    return MiddlewareClient(tmp_path, maxBodyBytes=5000)


def test_a_request_reaches_the_application_without_orders_to_it(middleware: MiddlewareClient) -> None:
    more = (
        (b"authorization", f"bearer {KEY}".encode()),
        (b"x-litellm-tags", b"x"),
        (b"x-litellm-timeout", b"1"),
    )
    status, _, headers = middleware.run({**CHAT, "seed": 3}, headers=more)
    assert status == 200 and middleware.app.bodies == [{**CHAT, "seed": 3}]
    [scope] = middleware.app.scopes
    assert [k for k, _ in scope["headers"]] == [b"content-type", b"content-length"]
    assert scope[SCOPE].name == "operator"
    assert b"x-litellm-cost" not in headers and b"content-length" not in headers


QUERIES = (
    "model=other",
    "model=o",
    "model=theirs",
    "model=openai/theirs",
    "model=nonexistent",
    "model=m",
    "api-version=2020",
    "api_base=http://127.0.0.1:1",
    "model=m&user=x",
    "model=enginix/ensemble",
    "MODEL=o",
    "target_model_names=o",
    "%6dodel=o",
    "=",
    "&",
)


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("key", [KEY, ALICE])
def test_a_query_string_is_refused(middleware: MiddlewareClient, query: str, key: str) -> None:
    headers = ((b"authorization", f"Bearer {key}".encode()),)
    prompt = {"model": "m", "prompt": "x"}
    for path, method, body in (
        ("/v1/chat/completions", "POST", CHAT),
        ("/v1/completions", "POST", prompt),
        ("/v1/models", "GET", b""),
        ("/v1/models/m", "GET", b""),
        ("/health/ready", "GET", b""),
    ):
        status, found, _ = middleware.run(body, path, method, headers, query_string=query.encode())
        assert status == 400 and "query string" in found["error"]["message"]
        assert query not in json.dumps(found) or len(query) < 3
    assert middleware.app.scopes == []
    assert "nonexistent" not in "".join(middleware.log)


def test_the_forwarded_request_is_composed_anew(middleware: MiddlewareClient) -> None:
    orders = {
        "raw_path": b"/v1/embeddings?model=o",
        "root_path": "/key",
        "http_version": "2",
        "scheme": "file",
        "client": ("6.6.6.6", 1),
        "server": ("7.7.7.7", 2),
        "path_params": {"model": "o"},
        "state": {"model": "o"},
        "extensions": {"x": 1},
        "unheard-of": 1,
    }
    headers = (
        (b"authorization", f"Bearer {KEY}".encode()),
        (b"host", b"evil"),
        (b"user-agent", b"evil"),
        (b"cookie", b"evil"),
    )
    status, _, _ = middleware.run({**CHAT, "seed": None}, headers=headers, **orders)
    assert status == 200
    [scope] = middleware.app.scopes
    assert "evil" not in repr(scope["headers"])
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == (
        "/v1/chat/completions",
        b"/v1/chat/completions",
        b"",
    )
    for name in orders.keys() - {"raw_path"}:
        assert scope.get(name) != orders[name]
    # What counts as absent is not forwarded either.
    assert middleware.app.bodies == [CHAT]


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ((b"authorization", b"Bearer "),),
        ((b"authorization", f"Basic {KEY}".encode()),),
        ((b"authorization", b"Bearer \xff\xfe"),),
        ((b"authorization", f"Bearer {KEY}x".encode()),),
        ((b"authorization", f"Bearer {KEY}".encode()), (b"authorization", b"Bearer x")),
        ((b"x-api-key", KEY.encode()),),
    ],
)
def test_without_the_key_nothing(middleware: MiddlewareClient, headers: Any) -> None:
    for path, method in (("/v1/chat/completions", "POST"), ("/v1/models", "GET"), ("/any", "GET")):
        status, body, _ = middleware.run(CHAT, path, method, headers)
        assert status == 401 and body["error"]["code"] == "invalid_api_key"
    assert middleware.app.bodies == []


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://localhost:3000", 200),
        ("http://127.0.0.1", 200),
        ("http://[::1]:4000", 200),
        ("https://evil.example", 403),
        ("null", 403),
        ("http://127.0.0.1.evil.example", 403),
        ("http://localhost@evil.example", 403),
        ("http://[::1", 403),
        ("", 403),
    ],
)
def test_web_pages_of_others_do_not_ask_a_gateway_without_keys(
    tmp_path: Path, origin: str | None, status: int
) -> None:
    middleware = MiddlewareClient(tmp_path, has_keys=False)
    headers = () if origin is None else ((b"origin", origin.encode()),)
    assert middleware.run(CHAT, headers=headers)[0] == status
    assert len(middleware.app.bodies) == (status == 200)


def test_a_page_that_has_a_key_may_ask(middleware: MiddlewareClient) -> None:
    headers = ((b"authorization", f"Bearer {KEY}".encode()), (b"origin", b"https://chat.example"))
    assert middleware.run(CHAT, headers=headers)[0] == 200


def test_a_body_of_two_lengths_is_refused(middleware: MiddlewareClient) -> None:
    """What follows may be another's request: a proxy in front may have read another end."""
    key = (b"authorization", f"Bearer {KEY}".encode())
    framing = ((b"content-length", b"4"), (b"transfer-encoding", b"chunked"))
    status, body, headers = middleware.run(CHAT, headers=(key, *framing))
    assert status == 400 and "Transfer-Encoding" in body["error"]["message"]
    assert headers[b"connection"] == b"close" and middleware.app.bodies == []
    for one in framing:
        assert middleware.run(CHAT, headers=(key, one))[0] == 200


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_json_is_utf_8(middleware: MiddlewareClient, encoding: str) -> None:
    status, body, _ = middleware.run(json.dumps(CHAT).encode(encoding))
    assert status == 400 and "not JSON" in body["error"]["message"]
    assert middleware.run(json.dumps(CHAT).encode("utf-8-sig"))[0] == 200


def test_half_a_surrogate_pair_is_no_text(middleware: MiddlewareClient) -> None:
    for raw in (
        b'{"model": "m", "prompt": "a\\ud800b"}',
        b'{"model": "m", "prompt": "a", "user": "\\udfff"}',
    ):
        status, body, _ = middleware.run(raw, "/v1/completions")
        assert status == 400 and "surrogate" in body["error"]["message"]
    # A whole pair is a character.
    assert middleware.run(b'{"model": "m", "prompt": "\\ud83d\\ude42"}', "/v1/completions")[0] == 200
    assert len(middleware.app.scopes) == 1


# A shared machine may take any time for the files that each example makes.
@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_refused_in_openais_form(tmp_path_factory: Any, raw: bytes) -> None:
    middleware = MiddlewareClient(tmp_path_factory.mktemp("middleware"))
    status, body, _ = middleware.run(raw)
    assert status == 400 and isinstance(body["error"]["message"], str)
    assert middleware.app.bodies == []


def test_depth_size_and_time_are_bounded(middleware: MiddlewareClient) -> None:
    assert middleware.run(b'{"model": "m", "messages": ' + b"[" * 2000)[0] == 400
    nested = b'{"model": "m", "messages": ' + b"[" * 40 + b"]" * 40 + b"}"
    assert "deeper" in middleware.run(nested)[1]["error"]["message"]
    assert middleware.run({**CHAT, "user": "x" * 6000})[0] == 413


def test_a_body_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    middleware = MiddlewareClient(tmp_path, bodySeconds=1)

    async def stuck() -> int:
        async def receive() -> Any:
            await asyncio.sleep(0.05)
            return {"type": "http.request", "body": b" ", "more_body": True}

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"authorization", f"Bearer {KEY}".encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
        await middleware.auth_middleware(scope, receive, send)
        return int(sent[0]["status"])

    assert asyncio.run(stuck()) == 408


def test_a_client_that_leaves_ends_the_answer(middleware: MiddlewareClient) -> None:
    middleware.app.hold = True

    async def leaves() -> tuple[int, bytes, Any]:
        leave = asyncio.Event()
        asking = asyncio.ensure_future(middleware.ask(CHAT, leave=leave))
        await middleware.await_requests(1)
        leave.set()
        return await asyncio.wait_for(asking, 300)

    assert asyncio.run(leaves())[0] == 0
    assert middleware.app.cancelled == 1
    assert " 499 " in middleware.log[-1]


def test_more_at_once_than_allowed_is_429_and_places_come_back(tmp_path: Path) -> None:
    middleware = MiddlewareClient(tmp_path, maxParallelRequests=2)
    middleware.app.hold = True

    async def crowd() -> list[int]:
        leave = asyncio.Event()
        asking = [asyncio.ensure_future(middleware.ask(CHAT, leave=leave)) for _ in range(2)]
        await middleware.await_requests(2)
        refused = await middleware.ask(CHAT)
        leave.set()
        await asyncio.gather(*asking)
        middleware.app.hold = False
        return [refused[0], (await middleware.ask(CHAT))[0]]

    assert asyncio.run(crowd()) == [429, 200]


def test_a_clients_places_are_its_own_and_come_back(middleware: MiddlewareClient) -> None:
    middleware.app.hold = True
    alice = ((b"authorization", f"Bearer {ALICE}".encode()),)

    async def crowd() -> list[int]:
        leave = asyncio.Event()
        asking = asyncio.ensure_future(middleware.ask(CHAT, headers=alice, leave=leave))
        await middleware.await_requests(1)
        refused = await middleware.ask(CHAT, headers=alice)
        leave.set()
        await asking
        middleware.app.hold = False
        return [refused[0], (await middleware.ask(CHAT, headers=alice))[0], (await middleware.ask(CHAT))[0]]

    assert asyncio.run(crowd()) == [429, 200, 200]


def test_models_are_those_of_the_key(middleware: MiddlewareClient) -> None:
    alice = ((b"authorization", f"Bearer {ALICE}".encode()),)
    assert [m["id"] for m in middleware.run(b"", "/v1/models", "GET")[1]["data"]] == ["m", "o", "alias"]
    assert [m["id"] for m in middleware.run(b"", "/v1/models", "GET", alice)[1]["data"]] == ["m", "alias"]
    assert middleware.run({**CHAT, "model": "o"}, headers=alice)[0] == 404
    assert middleware.run({**CHAT, "model": "alias"}, headers=alice)[0] == 200


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/modelsx", "/key/generate", "/v1/chat/completions/", "//v1/models"]
)
def test_other_routes_are_none(middleware: MiddlewareClient, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        assert middleware.run(CHAT, path, method)[0] == 404
    assert middleware.app.scopes == []


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
def test_health_is_read_alone(middleware: MiddlewareClient, path: str) -> None:
    for method in ("POST", "PUT", "DELETE"):
        status, body, _ = middleware.run(CHAT, path, method)
        assert status == 405 and method in body["error"]["message"]
    assert middleware.run(b"", path, "HEAD")[0] in (200, 503)


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/models", "GET, HEAD"),
        ("/v1/models/m", "GET, HEAD"),
        ("/metrics", "GET, HEAD"),
        ("/health/live", "GET, HEAD"),
        ("/health/ready", "GET, HEAD"),
        ("/v1/completions", "POST"),
        ("/v1/chat/completions", "POST"),
    ],
)
def test_other_methods_are_told_those_of_the_route(
    middleware: MiddlewareClient, path: str, methods: str
) -> None:
    """A browser's question before its own, OPTIONS, has no key."""
    for method, headers in (("OPTIONS", ((b"origin", b"https://chat.example"),)), ("DELETE", None)):
        more = {} if headers is None else {"headers": headers}
        status, body, sent = middleware.run(b"", path, method, **more)
        assert status == 405 and sent[b"allow"].decode() == methods
        assert body["error"].keys() == {"message", "type", "param", "code"}
    if path != "/metrics":  # whose body is no JSON, which the client of the test reads
        assert middleware.run(b"", path, "HEAD")[0] in ((405,) if methods == "POST" else (200, 503))
    assert middleware.run(b"", "/v1/none", "OPTIONS", headers=())[0] == 401
    assert middleware.app.scopes == []


def test_errors_are_openais_and_the_log_has_no_words_of_a_client(middleware: MiddlewareClient) -> None:
    said = "litellm.BadRequestError: EnginixException - top_k: too much\n\nLiteLLM: model group 'm' failed."
    middleware.app.status = 400
    middleware.app.answer = [json.dumps({"error": {"message": said, "code": "400"}}).encode()]
    status, body, _ = middleware.run(CHAT)
    assert status == 400
    assert body["error"] == {
        "message": "top_k: too much",
        "type": "invalid_request_error",
        "param": "top_k",
        "code": None,
    }
    assert "top_k: too much" in middleware.log[-1]
    assert "secret words" not in "".join(middleware.log) and KEY not in "".join(middleware.log)


def test_no_server_left_is_503(middleware: MiddlewareClient) -> None:
    middleware.app.status = 429
    middleware.app.answer = [
        b'{"error": {"message": "No deployments available for selected model", "code": "429"}}'
    ]
    status, body, _ = middleware.run(CHAT)
    assert status == 503 and "litellm" not in body["error"]["message"].lower()


def test_an_application_that_fails_is_a_plain_500(middleware: MiddlewareClient) -> None:
    async def broken(*_: Any) -> None:
        raise KeyError("secret words")

    middleware.auth_middleware._app = broken
    status, body, _ = middleware.run(CHAT)
    assert status == 500 and "secret" not in json.dumps(body) + "".join(middleware.log)
    middleware.run(b"", "/v1/models", "GET")
    page = (Path(__file__).parents[3] / "docs/how-to/logs-and-metrics.md").read_text("utf-8")
    pattern = page.partition("-g '")[2].partition("'")[0]
    assert [bool(re.search(pattern, line)) for line in middleware.log] == [True, False]


EVENTS = [
    {"object": "chat.completion.chunk", "choices": [{"delta": {"content": "ä"}}]},
    {"object": "chat.completion.chunk", "choices": [{"delta": {"content": "\u2028"}}], "usage": {"a": 0}},
    {"object": "text_completion", "choices": [{"text": "x"}], "usage": {"total_tokens": 0}},
    {"object": "text_completion", "choices": [{"text": "x"}], "usage": {"total_tokens": 2}},
    {"object": "text_completion", "choices": [{"text": None, "finish_reason": "stop"}]},
    {"object": "chat.completion.chunk", "choices": [{"delta": {}}], "usage": {"total_tokens": 3}},
    {"object": "chat.completion.chunk", "choices": [], "usage": {"total_tokens": 4}},
    {"error": {"message": "litellm.APIError: EnginixException - gone", "code": "503"}},
]


@given(
    st.lists(st.sampled_from(EVENTS), max_size=6), st.lists(st.integers(1, 40), max_size=20), st.booleans()
)
def test_events_are_whole_however_they_are_cut(events: list[Any], cuts: list[int], asked: bool) -> None:
    raw = b"".join(b"data: " + json.dumps(e).encode() + b"\n\n" for e in events) + b"data: [DONE]\n\n"
    parts, rest = [], raw
    for size in cuts:
        parts.append(rest[:size])
        rest = rest[size:]
    cleaner = response_rewrite.EventRewriter("id", "m", include_usage=asked)
    out = b"".join(cleaner.feed(p, more=True) for p in parts) + cleaner.feed(rest, more=False)
    *found, done = [e for e in out.decode().split("\n\n") if e]
    assert done == "data: [DONE]"
    read = [json.loads(text.removeprefix("data: ")) for text in found]
    usages = [e["usage"] for e in events if "usage" in e and any(e["usage"].values())]
    failed = any("error" in e for e in events)
    if asked and usages and not failed:
        assert read.pop()["usage"] == usages[-1]
    # A usage that was not asked for takes no text away, and is not shown.
    told = [e for e in events if "error" in e or e not in (EVENTS[5], EVENTS[6])]
    assert len(read) == len(told)
    for chunk, event in zip(read, told, strict=True):
        if "error" in event:
            assert chunk["error"]["message"] == "gone" and chunk["error"]["type"] == "server_error"
            continue
        assert "usage" not in chunk and (chunk["id"], chunk["model"]) == ("id", "m")
        if event["object"] == "text_completion":
            assert chunk["choices"][0]["text"] == (event["choices"][0]["text"] or "")
        else:
            assert chunk["choices"] == [{"finish_reason": None, **c} for c in event["choices"]]
