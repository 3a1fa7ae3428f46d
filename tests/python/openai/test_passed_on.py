"""Requests as they reach the servers behind the gateway through the real LiteLLM; a stand-in records them."""

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
def client(start_gateway: Callable[..., Any], standin: StandIn, tmp_path_factory: Any) -> Iterator[Any]:
    key: Path = tmp_path_factory.mktemp("key") / "server"
    key.write_text(SERVER_KEY)
    key.chmod(0o600)
    other = {"kind": "openai", "url": f"{standin.url}/v1", "model": "theirs", "keyFile": str(key)}
    models = {"tiny": [{"kind": "triton", "url": standin.url, "model": "ensemble"}], "other": [other]}
    with start_gateway({"models": models, "limits": {"defaultMaxTokens": 99}}) as gateway:
        assert [x for x in gateway.lines() if "serves mine, but the gateway asks for theirs" in x]
        yield gateway.client()
        assert SERVER_KEY not in gateway.log.read_text()


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
        # Triton's stop words are sequences of tokens; these are texts, and found here.
        ({"stop": "c"}, {"max_tokens": 99}),
        ({"stop": ["c", "\n"]}, {"max_tokens": 99}),
        ({"top_k": 0}, {"max_tokens": 99, "top_k": 0}),
        (
            {"top_k": 7, "min_tokens": 2, "seed": 1},
            {"max_tokens": 99, "top_k": 7, "min_tokens": 2, "seed": 1},
        ),
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
        body = {"max_tokens": 3, "stream": True, "text_input": prompt}
        assert last(standin) == body


def test_stop_is_found_across_pieces(client: Any, standin: StandIn) -> None:
    standin.pieces = ["Thought: x", "\nObs", "erva", "tion: y"]
    try:
        for stream in (False, True):
            asked = {"model": "tiny", "prompt": "x", "stop": ["\nObservation:"], "stream": stream}
            answer = client.completions.create(**asked)
            chunks = list(answer) if stream else [answer]
            assert "".join(c.choices[0].text for c in chunks) == "Thought: x"
            assert chunks[-1].choices[0].finish_reason == "stop"
    finally:
        standin.pieces = ["a", "b"]


def test_no_seed_is_a_new_seed_each_time(client: Any, standin: StandIn) -> None:
    for _ in range(4):
        client.chat.completions.create(model="tiny", messages=SAID, temperature=1)
    seeds = [body["seed"] for _, body, _ in standin.asked[-4:]]
    assert len(set(seeds)) == 4


def test_characters_that_end_lines_elsewhere_are_text(client: Any, standin: StandIn) -> None:
    standin.pieces = ["a\u2028", "\u2029b", "\u0085"]
    standin.message = {"role": "assistant", "content": "a\u2028\u0085"}
    standin.deltas = [{"role": "assistant", "content": "a\u2028"}, {"content": "\u0085"}]
    try:
        for model, text in (("tiny", "a\u2028\u2029b\u0085"), ("other", "a\u2028\u0085")):
            whole = client.chat.completions.create(model=model, messages=SAID)
            assert whole.choices[0].message.content == text
            chunks = client.chat.completions.create(model=model, messages=SAID, stream=True)
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    finally:
        standin.pieces, standin.message = ["a", "b"], {"role": "assistant", "content": "hi"}
        standin.deltas = [{"role": "assistant", "content": ""}, {"content": "hi"}]


def test_several_prompts_are_several_choices(client: Any, standin: StandIn) -> None:
    prompts = ["one", "two", "three"]
    before = len(standin.asked)
    whole = client.completions.create(model="tiny", prompt=prompts)
    assert [(c.index, c.text) for c in whole.choices] == [(0, "ab"), (1, "ab"), (2, "ab")]
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (15, 6)
    assert sorted(body["text_input"] for _, body, _ in standin.asked[before:]) == sorted(prompts)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.completions.create(model="tiny", prompt=prompts, **options))
    for index in range(3):
        mine = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == index]
        assert "".join(c.text for c in mine) == "ab" and mine[-1].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == 21
    # A server of OpenAI's interface has the list as it is.
    client.completions.create(model="other", prompt=prompts)
    assert standin.asked[-1][1]["prompt"] == prompts


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}
TOOL_CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": "ü"}'}}
HISTORY = [
    {"role": "user", "content": "x"},
    {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "42"},
]
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "n", "strict": True, "schema": {"type": "object", "properties": {}}},
}


def without_nulls(value: Any) -> Any:
    """LiteLLM leaves a message's null content out, which means the same."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def test_tools_and_structured_output_are_passed_on_as_they_are(client: Any, standin: StandIn) -> None:
    standin.message = {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}
    first, rest = dict(TOOL_CALL["function"]), dict(TOOL_CALL["function"])
    first["arguments"], rest = '{"a": ', {"arguments": '"ü"}'}
    standin.deltas = [
        {"role": "assistant", "content": None, "tool_calls": [{**TOOL_CALL, "index": 0, "function": first}]},
        {"tool_calls": [{"index": 0, "function": rest}]},
    ]
    more = {
        "messages": HISTORY,
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
        "response_format": SCHEMA,
    }
    try:
        whole = client.chat.completions.create(model="other", **more)
        assert without_nulls({k: standin.asked[-1][1][k] for k in more}) == without_nulls(more)
        assert whole.choices[0].finish_reason == "tool_calls"
        [call] = whole.choices[0].message.tool_calls
        assert call.model_dump() == TOOL_CALL and whole.choices[0].message.content is None
        chunks = list(client.chat.completions.create(model="other", stream=True, **more))
        assert without_nulls({k: standin.asked[-1][1][k] for k in more}) == without_nulls(more)
        calls = [d for c in chunks if c.choices for d in c.choices[0].delta.tool_calls or ()]
        assert calls[0].id == "call_1" and calls[0].function.name == "f"
        assert "".join(d.function.arguments or "" for d in calls) == '{"a": "ü"}'
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "tool_calls"
    finally:
        standin.message = {"role": "assistant", "content": "hi"}
        standin.deltas = [{"role": "assistant", "content": ""}, {"content": "hi"}]


def test_connections_are_used_again(client: Any, standin: StandIn) -> None:
    before = standin.connections
    for _ in range(10):
        client.chat.completions.create(model="tiny", messages=SAID)
    assert standin.connections - before <= 1


def test_another_server_gets_everything_and_its_own_key(client: Any, standin: StandIn) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    # LiteLLM would drop the fifth and sixth.
    stop = ["a", "b", "c", "d", "e", "f"]
    more: dict[str, Any] = {"stop": stop, "presence_penalty": 0.5, "seed": 3}
    more |= {"n": 2, "tools": tools, "logprobs": True, "top_logprobs": 2}
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
