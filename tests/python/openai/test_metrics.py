"""Metrics of the gateway, by a clock of the tests' own, and through the auth middleware."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from enginix.gateway.auth_middleware import AuthMiddleware
from enginix.gateway.keys import Keys
from enginix.gateway.metrics import GatewayMetrics
from enginix.gateway.spec import GatewaySpecError, parse_gateway_spec

KEY, ALICE, MONITOR = "sk-" + "a" * 30, "sk-" + "b" * 30, "sk-" + "c" * 30
CHAT = {"model": "o", "messages": [{"role": "user", "content": "secret words"}]}


def read_samples(text: str) -> dict[tuple[str, str], float]:
    """Return samples by name and labels, without the prefix."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    rows = [re.fullmatch(r"enginix_gateway_(\w+)\{(.*)\} (\S+)", line) for line in lines]
    assert all(rows), lines
    return {(r[1], r[2]): float(r[3]) for r in rows if r}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_times_and_tokens_are_those_of_the_clock() -> None:
    clock = Clock()
    metrics = GatewayMetrics(dict, [("m", "alice")], clock)
    labels = 'model="m",client="alice"'
    assert read_samples(metrics.render())["first_token_seconds_count", labels] == 0
    with metrics.measure("m", "alice") as meter:
        part = meter.part()
        samples = read_samples(metrics.render())
        assert (samples["requests_running", labels], samples["requests_waiting", labels]) == (1, 1)
        clock.now += 2
        part.see_piece(7, 1)
        assert read_samples(metrics.render())["requests_waiting", labels] == 0
        clock.now += 0.5
        part.see_piece(7, 2)
        # Three tokens in one piece: each came after a third of the time.
        clock.now += 0.75
        part.see_piece(7, 5)
        part.count()
        meter.end_answer()
    samples = read_samples(metrics.render())
    assert (samples["requests_running", labels], samples["requests_waiting", labels]) == (0, 0)
    assert (
        samples["first_token_seconds_sum", labels] == 2 and samples["first_token_seconds_count", labels] == 1
    )
    assert samples["between_tokens_seconds_sum", labels] == pytest.approx(1.25)
    assert samples["between_tokens_seconds_count", labels] == 4
    assert samples["between_tokens_seconds_bucket", f'{labels},le="0.25"'] == 3
    assert samples["between_tokens_seconds_bucket", f'{labels},le="0.5"'] == 4
    assert samples["request_seconds_sum", labels] == 3.25
    assert (samples["prompt_tokens_total", labels], samples["completion_tokens_total", labels]) == (7, 5)


def test_a_request_without_a_token_no_longer_waits() -> None:
    metrics = GatewayMetrics(dict)
    with pytest.raises(ZeroDivisionError), metrics.measure("m", "c"):
        raise ZeroDivisionError
    samples = read_samples(metrics.render())
    assert samples["requests_waiting", 'model="m",client="c"'] == 0
    assert ("first_token_seconds_count", 'model="m",client="c"') not in samples


def test_labels_are_escaped() -> None:
    metrics = GatewayMetrics(dict)
    metrics.count_request("m", 'a"b\\c\nd', "answered", 200)
    assert r'client="a\"b\\c\nd"' in metrics.render()


class StandIn:
    """Answers in LiteLLM's place, streamed as far as a test sets."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.hangs = False
        self.status = 200

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = json.loads((await receive())["body"])
        kind = b"text/event-stream" if body.get("stream") else b"application/json"
        await send(
            {"type": "http.response.start", "status": self.status, "headers": [(b"content-type", kind)]}
        )
        for row in self.rows:
            raw = (row if isinstance(row, str) else json.dumps(row)).encode()
            event = b"data: " + raw + b"\n\n" if body.get("stream") else raw
            await send({"type": "http.response.body", "body": event, "more_body": True})
        if self.hangs:
            await asyncio.sleep(600)
        await send({"type": "http.response.body", "body": b""})


def chunk(**delta: Any) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}


USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
LAST = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
STREAM = [chunk(role="assistant"), chunk(content="a"), chunk(content="b"), chunk(content="c"), LAST]


class Gateway:
    """The middleware over the stand-in, with three keys."""

    def __init__(self, directory: Path, **alice: int) -> None:
        for name, key in (("key", KEY), ("alice", ALICE), ("monitor", MONITOR)):
            (directory / name).write_text(key)
            (directory / name).chmod(0o600)
        server = {"kind": "openai", "url": "http://127.0.0.1:1", "model": "x"}
        spec = parse_gateway_spec(
            {
                "version": 1,
                "name": "gateway",
                "models": {"o": [server], "p": [server]},
                "keyFile": str(directory / "key"),
                "metricsKeyFile": str(directory / "monitor"),
                "clients": {"alice": {"keyFile": str(directory / "alice"), "models": ["o"], **alice}},
            },
            "test",
        )
        self.app = StandIn()
        state = {"o": {"servers": 1, "answering": 0}}
        self.middleware = AuthMiddleware(self.app, spec, Keys(spec), lambda: (False, state), lambda _: None)

    async def ask(
        self, body: Any = None, key: str | None = ALICE, path: str = "", *, leaves_after: int = 0
    ) -> tuple[int, bytes]:
        parts, sent, gone = [json.dumps(body).encode()], [], asyncio.Event()

        async def receive() -> Any:
            if parts:
                return {"type": "http.request", "body": parts.pop()}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)
            if leaves_after and len(sent) >= leaves_after:
                gone.set()
                await asyncio.sleep(0.05)

        headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
        method = "POST" if body is not None else "GET"
        scope = {"type": "http", "method": method, "path": path or "/v1/chat/completions", "headers": headers}
        await self.middleware(scope, receive, send)
        return sent[0]["status"], b"".join(m.get("body", b"") for m in sent)

    def run(self, *args: Any, **more: Any) -> tuple[int, bytes]:
        return asyncio.run(self.ask(*args, **more))

    def samples(self) -> dict[tuple[str, str], float]:
        status, raw = self.run(key=MONITOR, path="/metrics")
        assert status == 200
        return read_samples(raw.decode())

    def ended(self, model: str, client: str, outcome: str, status: int) -> float:
        labels = f'model="{model}",client="{client}",outcome="{outcome}",status="{status}"'
        return self.samples()["requests_total", labels]


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return Gateway(tmp_path)


OF_ALICE = 'model="o",client="alice"'


def test_a_streams_tokens_are_its_servers_counts(gateway: Gateway) -> None:
    gateway.app.rows = [*STREAM, {**LAST, "choices": [], "usage": USAGE}, "[DONE]"]
    status, raw = gateway.run({**CHAT, "stream": True})
    # The client did not ask for the usage.
    assert status == 200 and b"usage" not in raw and raw.endswith(b"[DONE]\n\n")
    samples = gateway.samples()
    assert (samples["prompt_tokens_total", OF_ALICE], samples["completion_tokens_total", OF_ALICE]) == (5, 3)
    assert samples["first_token_seconds_count", OF_ALICE] == 1
    assert samples["between_tokens_seconds_count", OF_ALICE] == 2
    assert samples["request_seconds_count", OF_ALICE] == 1
    assert gateway.ended("o", "alice", "answered", 200) == 1
    # Another model, another client, and servers.
    assert samples["completion_tokens_total", 'model="p",client="operator"'] == 0
    assert ("completion_tokens_total", 'model="p",client="alice"') not in samples
    assert (samples["servers", 'model="o"'], samples["servers_answering", 'model="o"']) == (1, 0)


def test_an_answer_that_is_not_streamed_has_no_first_token(gateway: Gateway) -> None:
    gateway.app.rows = [{"choices": [{"index": 0, "message": {"content": "abc"}}], "usage": USAGE}]
    assert gateway.run(CHAT)[0] == 200
    samples = gateway.samples()
    assert (samples["prompt_tokens_total", OF_ALICE], samples["completion_tokens_total", OF_ALICE]) == (5, 3)
    assert samples["first_token_seconds_count", OF_ALICE] == 0
    assert samples["request_seconds_count", OF_ALICE] == 1


def test_a_stream_that_breaks_off_has_failed(gateway: Gateway) -> None:
    gateway.app.rows = STREAM[:3]
    assert b'"error"' in gateway.run({**CHAT, "stream": True})[1]
    assert gateway.ended("o", "alice", "failed", 200) == 1
    samples = gateway.samples()
    assert samples["completion_tokens_total", OF_ALICE] == 2
    assert samples["request_seconds_count", OF_ALICE] == 0


def test_a_client_that_leaves_pays_for_what_it_got(tmp_path: Path) -> None:
    """A client that reads a whole stream and leaves before its end would not count against its limit."""
    gateway = Gateway(tmp_path, tokensPerMinute=3)
    gateway.app.rows, gateway.app.hangs = STREAM, True
    gateway.run({**CHAT, "stream": True}, leaves_after=len(STREAM))
    assert gateway.samples()["completion_tokens_total", OF_ALICE] == 3
    assert gateway.ended("o", "alice", "gone", 499) == 1
    status, raw = gateway.run({**CHAT, "stream": True})
    assert status == 429 and b"3 tokens a minute" in raw
    assert gateway.ended("o", "alice", "refused", 429) == 1


@pytest.mark.parametrize("usage", [[], "many", 3, {"prompt_tokens": "5"}, {"completion_tokens": -4}, None])
@pytest.mark.parametrize("stream", [False, True])
def test_counts_that_are_none_change_nothing(gateway: Gateway, usage: Any, stream: bool) -> None:
    whole = {"choices": [{"index": 0, "message": {"content": "abc"}}], "usage": usage}
    gateway.app.rows = [*STREAM, {**LAST, "choices": [], "usage": usage}, "[DONE]"] if stream else [whole]
    assert gateway.run({**CHAT, "stream": stream})[0] == 200
    assert gateway.samples()["prompt_tokens_total", OF_ALICE] == 0


def test_refusals_have_their_status_and_no_text_of_a_client(gateway: Gateway) -> None:
    assert gateway.run(CHAT, key=None)[0] == 401
    assert gateway.run(CHAT, key="sk-stranger")[0] == 401
    assert gateway.run({**CHAT, "model": "their words"})[0] == 404
    assert gateway.run({**CHAT, "nonsense": 1})[0] == 400
    gateway.app.status = 503
    gateway.app.rows = [{"error": {"message": "no"}}]
    assert gateway.run(CHAT)[0] == 503
    assert gateway.ended("-", "-", "refused", 401) == 2
    assert gateway.ended("-", "alice", "refused", 404) == 1
    assert gateway.ended("o", "alice", "refused", 400) == 1
    assert gateway.ended("o", "alice", "failed", 503) == 1
    text = gateway.run(key=MONITOR, path="/metrics")[1].decode()
    assert "words" not in text and "stranger" not in text and "nonsense" not in text


def test_metrics_that_pages_name_are_there(gateway: Gateway) -> None:
    pages = [page.read_text("utf-8") for page in (Path(__file__).parents[3] / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"enginix_gateway_[a-z_]*[a-z]", page)}
    text = gateway.run(key=MONITOR, path="/metrics")[1].decode()
    assert len(named) > 4 and named <= set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))


def test_who_may_read_metrics(gateway: Gateway) -> None:
    assert gateway.run(key=KEY, path="/metrics")[0] == 200
    assert gateway.run(key=MONITOR, path="/metrics")[0] == 200
    assert gateway.run(key=ALICE, path="/metrics")[0] == 403
    assert gateway.run(key=None, path="/metrics")[0] == 401
    assert gateway.run({}, key=MONITOR, path="/metrics")[0] == 403
    # Their key opens nothing else.
    assert gateway.run(CHAT, key=MONITOR)[0] == 403
    assert gateway.run(key=MONITOR, path="/v1/models")[0] == 403


def test_a_key_for_metrics_alone_would_lock_everybody_out(tmp_path: Path) -> None:
    server = {"kind": "openai", "url": "http://127.0.0.1:1", "model": "x"}
    found = {"version": 1, "name": "g", "models": {"o": [server]}, "metricsKeyFile": "k"}
    with pytest.raises(GatewaySpecError, match="no key lets requests in"):
        parse_gateway_spec(found, "test")
