"""What reaches the servers behind the gateway through the real LiteLLM; a stand-in writes it down."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from openai_standin import StandIn

pytestmark = pytest.mark.slow
SERVER_KEY = "sk-server-" + "3" * 20
SAID = [
    {"role": "system", "content": "Sei kurz. \"' \n\t"},
    {"role": "user", "content": "Grüße 🙂"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "  leading and trailing  "},
]


@pytest.fixture(scope="module")
def standin() -> Iterator[StandIn]:
    server = StandIn()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def client(start_gateway: Callable[..., Any], standin: StandIn, tmp_path_factory: Any) -> Iterator[Any]:
    key: Path = tmp_path_factory.mktemp("key") / "server"
    key.write_text(SERVER_KEY)
    key.chmod(0o600)
    other = {"kind": "openai", "url": f"{standin.url}/v1", "model": "theirs", "keyFile": str(key)}
    models = {"tiny": [{"kind": "triton", "url": standin.url, "model": "ensemble"}], "other": [other]}
    with start_gateway({"models": models, "limits": {"defaultMaxTokens": 99}}) as door:
        assert [x for x in door.lines() if "serves mine, and is asked for theirs" in x]
        yield door.client()
        assert SERVER_KEY not in door.log.read_text()


def last(standin: StandIn) -> dict[str, Any]:
    path, body, authorization = standin.asked[-1]
    assert path == "/v2/models/ensemble/generate_stream" and authorization == ""
    return body


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({}, {"max_tokens": 99}),
        ({"max_tokens": 3}, {"max_tokens": 3}),
        ({"max_completion_tokens": 4}, {"max_tokens": 4}),
        ({"temperature": 0}, {"max_tokens": 99, "temperature": 0}),
        ({"temperature": 0.0, "top_p": 1}, {"max_tokens": 99, "temperature": 0, "top_p": 1}),
        ({"seed": 0}, {"max_tokens": 99, "seed": 0}),
        ({"seed": 2**63 - 1}, {"max_tokens": 99, "seed": 2**63 - 1}),
        ({"stop": "a"}, {"max_tokens": 99, "stop_words": ["a"]}),
        ({"stop": ["a", "\n"]}, {"max_tokens": 99, "stop_words": ["a", "\n"]}),
        ({"top_k": 0}, {"max_tokens": 99, "top_k": 0}),
        ({"top_k": 7, "min_tokens": 2}, {"max_tokens": 99, "top_k": 7, "min_tokens": 2}),
        ({"repetition_penalty": 1.1}, {"max_tokens": 99, "repetition_penalty": 1.1}),
        ({"presence_penalty": -0.5}, {"max_tokens": 99, "presence_penalty": -0.5}),
        ({"frequency_penalty": 0.25}, {"max_tokens": 99, "frequency_penalty": 0.25}),
        ({"ignore_eos": True}, {"max_tokens": 99, "end_id": -1}),
        ({"chat_template_kwargs": {"a": [1]}}, {"max_tokens": 99, "chat_template_args": '{"a": [1]}'}),
        ({"n": 1, "logprobs": False, "user": "u", "tools": []}, {"max_tokens": 99}),
    ],
)
def test_messages_and_parameters_reach_triton(
    client: Any, standin: StandIn, said: dict[str, Any], found: dict[str, Any], stream: bool
) -> None:
    answer = client.chat.completions.create(model="tiny", messages=SAID, stream=stream, extra_body=said)
    if stream:
        assert "".join(c.choices[0].delta.content or "" for c in answer) == "ab"
    else:
        assert answer.choices[0].message.content == "ab"
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 2)
    body = last(standin)
    assert json.loads(body.pop("messages")) == SAID
    assert body == {**found, "stream": True}


def test_a_prompt_reaches_triton_as_it_is(client: Any, standin: StandIn) -> None:
    prompt = "  <|im_start|>not a chat\n"
    for stream in (False, True):
        list(client.completions.create(model="tiny", prompt=prompt, max_tokens=3, stop="x", stream=stream))
        body = {"max_tokens": 3, "stop_words": ["x"], "stream": True, "text_input": prompt}
        assert last(standin) == body


def test_connections_are_used_again(client: Any, standin: StandIn) -> None:
    before = standin.connections
    for _ in range(10):
        client.chat.completions.create(model="tiny", messages=SAID)
    assert standin.connections - before <= 1


def test_another_server_gets_everything_and_its_own_key(client: Any, standin: StandIn) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    more = {"n": 2, "tools": tools, "logprobs": True, "top_logprobs": 2, "presence_penalty": 0.5, "seed": 3}
    client.chat.completions.create(
        model="other",
        messages=SAID,
        temperature=0.5,
        extra_body={**more, "top_k": 4, "repetition_penalty": 1.1},
    )
    path, body, authorization = standin.asked[-1]
    assert path == "/v1/chat/completions" and authorization == f"Bearer {SERVER_KEY}"
    wanted = {
        **more,
        "top_k": 4,
        "repetition_penalty": 1.1,
        "temperature": 0.5,
        "model": "theirs",
        "messages": SAID,
    }
    assert {k: body.get(k) for k in wanted} == wanted
    assert body.keys() - wanted.keys() <= {"stream"}
