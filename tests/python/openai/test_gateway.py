"""OpenAI's Python client, LiteLLM, our handler, the real tritonserver, and the test model behind it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from enginix.ports import reserve_ports
from faults.setting import Served

pytestmark = pytest.mark.slow

SAID = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Once upon a time"}]
# The test model's chat template, by hand.
PROMPT = (
    "<|im_start|>system\nBe brief.<|im_end|>\n"
    "<|im_start|>user\nOnce upon a time<|im_end|>\n<|im_start|>assistant\n"
)


def ask(client: Any, **more: Any) -> Any:
    asked = {"model": "tiny", "messages": SAID, "max_tokens": 12, "extra_body": {"ignore_eos": True}}
    return client.chat.completions.create(**{**asked, **more})


def text(chunks: Iterator[Any]) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


@pytest.fixture
def client(gateway: Any) -> Any:
    return gateway.client()


@pytest.fixture
def openai(gateway_python: Path) -> Any:
    import openai

    return openai


def test_chat_is_the_models_own_template_and_counts_are_tritons(client: Any, tiny: Served) -> None:
    answer = ask(client)
    direct = tiny.client.generate("ensemble", {"text_input": PROMPT, "max_tokens": 12, "end_id": -1})
    assert answer.choices[0].message.content == direct["text_output"]
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == direct["finish_reason"] == "length"
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (direct["prompt_tokens"], 12)
    assert usage.total_tokens == usage.prompt_tokens + 12
    assert answer.model == "tiny"


def test_a_stream_is_the_same_text_in_pieces_and_ends_as_openais_do(client: Any) -> None:
    whole = ask(client)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert text(iter(chunks)) == whole.choices[0].message.content
    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) > 3
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12
    assert all(c.usage is None for c in chunks[:-1])
    assert not any(c.usage for c in ask(client, stream=True))


def test_pieces_come_while_the_model_computes(client: Any) -> None:
    times = []
    begin = time.monotonic()
    for _ in ask(client, stream=True, max_tokens=800):
        times.append(time.monotonic() - begin)
    assert times[0] < times[-1] / 2


def test_stop_ends_a_text_before_the_word(client: Any) -> None:
    whole = client.completions.create(model="tiny", prompt="Once upon", max_tokens=16)
    words = whole.choices[0].text.split()
    word = f" {words[2]}"
    stopped = client.completions.create(model="tiny", prompt="Once upon", max_tokens=16, stop=[word])
    assert stopped.choices[0].finish_reason == "stop"
    assert word not in stopped.choices[0].text
    assert whole.choices[0].text.startswith(stopped.choices[0].text)


def test_a_completion_meets_no_template(client: Any, tiny: Served) -> None:
    direct = tiny.client.generate("ensemble", {"text_input": "Once upon a time", "max_tokens": 9})
    asked = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 9}
    whole = client.completions.create(**asked)
    assert whole.choices[0].text == direct["text_output"]
    assert whole.usage.prompt_tokens == direct["prompt_tokens"]
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == direct["text_output"]
    assert chunks[-1].usage.completion_tokens == 9


def test_sampling_is_the_servers(client: Any, tiny: Served) -> None:
    def asked(seed: int) -> str:
        extra = {"ignore_eos": True, "top_k": 50, "repetition_penalty": 1.3}
        answer = ask(client, temperature=1.5, top_p=0.9, seed=seed, extra_body=extra)
        return str(answer.choices[0].message.content)

    wanted = {"text_input": PROMPT, "max_tokens": 12, "temperature": 1.5, "top_p": 0.9, "seed": 7}
    direct = tiny.client.generate(
        "ensemble", {**wanted, "end_id": -1, "top_k": 50, "repetition_penalty": 1.3}
    )
    assert asked(7) == direct["text_output"]
    assert len({asked(seed) for seed in range(4)}) > 1


QUERIES = (
    "model=other",
    "model=oai",
    "model=m",
    "model=openai/m",
    "model=nonexistent",
    "api-version=2020",
    "api_base=http://127.0.0.1:1",
    "model=tiny&user=x",
    "model=enginix/ensemble",
)


@pytest.mark.parametrize("query", QUERIES)
def test_orders_in_the_address_are_refused(gateway: Any, query: str) -> None:
    import httpx

    for path, more in (("chat/completions", {"messages": SAID}), ("completions", {"prompt": "A"})):
        answer = httpx.post(
            f"{gateway.url}/v1/{path}?{query}",
            json={"model": "tiny", "max_tokens": 1, **more},
            headers={"Authorization": f"Bearer {gateway.alice}"},
            timeout=600,
        )
        assert answer.status_code == 400, answer.text
        assert "query string" in answer.json()["error"]["message"]
    assert "nonexistent" not in gateway.log.read_text()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("param", "more"),
    [
        ("n", {"n": 2}),
        ("logprobs", {"logprobs": True}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        ("response_format", {"response_format": {"type": "json_object"}}),
        ("presence_penalty", {"presence_penalty": 0.5}),
        ("frequency_penalty", {"frequency_penalty": -0.5}),
        ("temprature", {"extra_body": {"temprature": 1}}),
        ("temperature", {"temperature": 2.5}),
        ("max_tokens", {"max_tokens": 5000}),
        ("max_tokens", {"max_tokens": "many"}),
        ("mock_response", {"extra_body": {"mock_response": "x"}}),
        ("api_base", {"extra_body": {"api_base": "http://127.0.0.1:1"}}),
        ("messages[0].content[0]", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        ("messages", {"messages": [{"role": "stranger", "content": "x"}]}),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    client: Any, openai: Any, param: str, more: dict[str, Any], stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        list(ask(client, stream=stream, **more))
    assert refused.value.param == param
    assert param.split("[")[0] in refused.value.body["message"]
    assert "litellm" not in refused.value.body["message"].lower()


def test_too_long_a_prompt_is_refused_with_the_limit(client: Any, openai: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="2048"):
        ask(client, messages=[{"role": "user", "content": "word " * 3000}])
    with pytest.raises(openai.APIStatusError) as refused:
        ask(client, messages=[{"role": "user", "content": "x" * 300_000}])
    assert refused.value.status_code == 413


def test_models_and_unknown_ones(client: Any, openai: Any) -> None:
    assert [m.id for m in client.models.list()] == ["tiny", "other", "gpt-tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    assert ask(client, model="gpt-tiny").choices[0].message.content == ask(client).choices[0].message.content
    for lost in (lambda: ask(client, model="nix"), lambda: client.models.retrieve("nix")):
        with pytest.raises(openai.NotFoundError) as refused:
            lost()
        assert refused.value.code == "model_not_found"


def test_a_wrong_key_and_what_a_clients_key_may(gateway: Any, openai: Any) -> None:
    with pytest.raises(openai.AuthenticationError):
        ask(gateway.client("sk-unknown-" + "2" * 20))
    alice = gateway.client(gateway.alice)
    assert [m.id for m in alice.models.list()] == ["tiny", "gpt-tiny"]
    with pytest.raises(openai.NotFoundError):
        ask(alice, model="other")
    with pytest.raises(openai.RateLimitError, match="4"):
        for _ in range(6):
            ask(alice, max_tokens=1)


def test_sixty_four_streams_at_once_say_what_each_says_alone(client: Any) -> None:
    def one(number: int) -> str:
        said = [{"role": "user", "content": f"Story {number % 8}"}]
        return text(ask(client, messages=said, stream=True, max_tokens=16))

    alone = [one(i) for i in range(8)]
    with ThreadPoolExecutor(64) as pool:
        together = list(pool.map(one, range(64)))
    assert together == alone * 8


def test_two_hundred_at_once_are_answered(client: Any) -> None:
    """LiteLLM keeps the loop busy then; servers that answer meanwhile are not taken for lost ones."""

    def one(number: int) -> str:
        answer = ask(client, stream=number % 2 == 0, max_tokens=8)
        return text(answer) if number % 2 == 0 else answer.choices[0].message.content

    alone = one(0)
    with ThreadPoolExecutor(200) as pool:
        assert set(pool.map(one, range(200))) == {alone}


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_vanishes_frees_its_place(gateway: Any, tiny: Served, stream: bool) -> None:
    import httpx

    body = {"model": "tiny", "messages": SAID, "max_tokens": 2000, "ignore_eos": True, "stream": stream}
    before = sum(" 499 " in line for line in gateway.lines())

    def vanish(_: int) -> None:
        while True:
            with httpx.Client(timeout=httpx.Timeout(30, read=0.5 if not stream else 30)) as h:
                try:
                    with h.stream(
                        "POST",
                        f"{gateway.url}/v1/chat/completions",
                        json=body,
                        headers={"Authorization": f"Bearer {gateway.operator}"},
                    ) as answer:
                        # On a busy machine a first piece may come too late; that client tries again.
                        if answer.status_code == 503:
                            continue
                        next(answer.iter_bytes())
                except httpx.ReadTimeout:
                    pass
                return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(vanish, range(8)))
    deadline = time.monotonic() + 300
    while sum(" 499 " in line for line in gateway.lines()) < before + 8:
        assert time.monotonic() < deadline, gateway.lines()[-10:]
        time.sleep(0.1)
    # Eight answers of 2000 tokens would still be computed otherwise. A sender may be a moment behind.
    tiny.await_idle(300)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"model": "tiny"}',
        b'{"model": "tiny", "messages": []}',
        b'{"model": "tiny", "messages": ["x"]}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": NaN}]}',
        b'{"model": ["tiny"], "messages": 3}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}], "seed": -1}',
        b'{"model": "tiny", "messages": ' + b"[" * 50_000,
        b'{"model": "tiny", "messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b"\xff\xfe\x00",
    ],
)
def test_malformed_bodies_are_refused_and_leave_no_trace(gateway: Any, body: bytes) -> None:
    import httpx

    answer = httpx.post(
        f"{gateway.url}/v1/chat/completions",
        content=body,
        headers={"Authorization": f"Bearer {gateway.operator}"},
        timeout=600,
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]
    assert "Traceback" not in gateway.log.read_text()


@pytest.mark.parametrize(
    "path",
    ["/", "/ui", "/key/generate", "/config/yaml", "/model/info", "/v1/embeddings", "/health", "/routes"],
)
def test_nothing_else_of_litellm_is_reachable(gateway: Any, path: str) -> None:
    import httpx

    for method in ("GET", "POST"):
        key = {"Authorization": f"Bearer {gateway.operator}"}
        answer = httpx.request(method, f"{gateway.url}{path}", headers=key, timeout=600)
        assert answer.status_code in (404, 405)


def test_keys_are_in_no_log_no_process_and_no_environment(gateway: Any, client: Any) -> None:
    ask(client)
    proc = Path(f"/proc/{gateway.process.pid}")
    seen = gateway.log.read_bytes() + (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
    for key in (gateway.operator, gateway.alice):
        assert key.encode() not in seen
    assert b"Once upon" not in seen


def test_a_slow_client_gets_everything_and_hinders_nobody(client: Any) -> None:
    slow = ask(client, stream=True, max_tokens=400)
    first = next(slow)
    assert ask(client).choices[0].finish_reason == "length"
    time.sleep(1)
    chunks = [first, *slow]
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"


def test_ready_killed_and_back(
    start_gateway: Callable[..., Any], triton: Callable[..., Any], openai: Any, tiny: Served
) -> None:
    import httpx

    [port] = reserve_ports("127.0.0.1", [("http", 0)])
    flaky = {"kind": "triton", "url": f"http://127.0.0.1:{port}", "model": "ensemble"}
    steady = {"kind": "triton", "url": tiny.client.url, "model": "ensemble"}
    models = {"flaky": [flaky], "both": [flaky, steady], "steady": [steady]}
    with ExitStack() as stack:
        with ThreadPoolExecutor(1) as pool:
            # The gateway waits for a server that starts later.
            started = pool.submit(stack.enter_context, start_gateway({"models": models}))
            time.sleep(5)
            assert not started.done()
            served = stack.enter_context(triton(port))
            gateway = started.result(500)
        assert httpx.get(f"{gateway.url}/health/ready", timeout=600).status_code == 200
        client = gateway.client()
        times = []
        with httpx.Client(headers={"Authorization": f"Bearer {gateway.operator}"}, timeout=600) as plain:
            plain.get(f"{gateway.url}/v1/models")
            for _ in range(6):
                begin = time.monotonic()
                plain.post(
                    f"{gateway.url}/v1/chat/completions",
                    json={"model": "flaky", "messages": SAID, "max_tokens": 1},
                ).raise_for_status()
                times.append(time.monotonic() - begin)
        # LiteLLM's own first answer takes a hundred times as long as the next; being ready includes it.
        assert times[0] < 20 * max(times[1:])
        told = ask(client, model="flaky").choices[0].message.content
        stream = ask(client, model="flaky", stream=True, max_tokens=1500)
        next(stream)
        os.kill(served.child("/bin/tritonserver"), signal.SIGKILL)
        with pytest.raises(openai.APIError, match="server"):
            list(stream)
        for asked in ({}, {"stream": True}):
            with pytest.raises(openai.InternalServerError, match="cannot be reached") as failed:
                list(ask(client, model="flaky", **asked))
            assert failed.value.status_code == 503
        assert ask(client, model="steady").choices[0].message.content == told
        for _ in range(6):
            assert ask(client, model="both").choices[0].message.content == told
            assert text(ask(client, model="both", stream=True)) == told
        deadline = time.monotonic() + 300
        while httpx.get(f"{gateway.url}/health/ready", timeout=600).status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        served.process.wait(300)
        stack.enter_context(triton(port))
        assert ask(client, model="flaky").choices[0].message.content == told
        # What runs at the end is answered to its end; start_gateway checks the exit status.
        stream = ask(client, model="flaky", stream=True, max_tokens=300)
        first = next(stream)
        gateway.process.terminate()
        chunks = [first, *stream]
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
        with pytest.raises(openai.APIConnectionError):
            ask(client)
