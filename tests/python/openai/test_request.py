"""Checks of requests: every parameter is passed on or refused by name, for any input."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from enginix.gateway.answering import CheckedRequest
from enginix.gateway.request import (
    PARAMETERS,
    RequestRejected,
    build_triton_inputs,
    check_openai_request,
    parse_prompts,
    parse_text_messages,
)
from enginix.gateway.spec import GatewayLimits
from enginix.tables import load_table

CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
BASE: dict[str, dict[str, Any]] = {"chat": CHAT, "completions": {"model": "m", "prompt": "x"}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def test_inputs_that_the_table_names_are_the_repositorys() -> None:
    known = set(load_table("triton_reference")["models"]["ensemble"]["inputs"])
    known |= {t["name"] for t in load_table("triton_chat")["models"]["ensemble"]["inputs"]}
    assert {row["triton"] for row in PARAMETERS.values() if "triton" in row} <= known
    for row in PARAMETERS.values():
        assert len({"own", "triton", "only"} & row.keys()) == 1


# A server of OpenAI's interface judges its own stop; Triton's inputs are not asked for.
@example({"stop": [None]}, "completions", False)
@example({"stop": [None]}, "chat", False)
@example({"stop": [None]}, "chat", True)
@given(
    st.dictionaries(st.sampled_from(sorted(PARAMETERS)) | st.text(max_size=12), JSON, max_size=6),
    st.sampled_from(["chat", "completions"]),
    st.booleans(),
)
def test_anything_is_refused_by_name_or_passed_on(body: dict[str, Any], route: str, triton: bool) -> None:
    try:
        check_openai_request(route, {**BASE[route], **body}, is_triton=triton)
    except RequestRejected as e:
        assert e.status == 400 and e.message
        return
    assert body.keys() <= PARAMETERS.keys()
    if not triton:
        return
    found = build_triton_inputs(body)
    for name, value in body.items():
        row = PARAMETERS[name]
        if "triton" in row and value is not None and name != "ignore_eos":
            assert row["triton"] in found


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, {}),
        ({"max_tokens": 3}, {"max_tokens": 3}),
        ({"max_completion_tokens": 3, "max_tokens": None}, {"max_tokens": 3}),
        ({"seed": -1}, {"seed": 2**63 - 1}),
        ({"seed": -(2**63)}, {"seed": 0}),
        ({"seed": 2**63 - 1}, {"seed": 2**63 - 1}),
        ({"stop": "a"}, {}),
        ({"stop": ["a", "b"]}, {}),
        ({"ignore_eos": True}, {"end_id": -1}),
        ({"ignore_eos": False}, {}),
        ({"temperature": 0, "n": 1, "user": "u"}, {"temperature": 0}),
        # The smallest set of tokens whose probabilities reach 0 is the most likely one, whatever top_k is.
        ({"top_p": 0, "temperature": 1.5, "top_k": 9}, {"top_p": 0, "temperature": 0, "top_k": 9}),
        ({"top_p": 0.0}, {"top_p": 0, "temperature": 0}),
        ({"chat_template_kwargs": {"a": "ü"}}, {"chat_template_args": '{"a": "ü"}'}),
    ],
)
def test_inputs(given: dict[str, Any], found: dict[str, Any]) -> None:
    check_openai_request("chat", {**CHAT, **given}, is_triton=True)
    assert build_triton_inputs(given) == found


@pytest.mark.parametrize(
    "given",
    [{"temperature": 1}, {"top_p": 0.9}, {"top_k": 2}, {"temperature": 0.1, "top_k": 0}],
)
def test_sampling_without_a_seed_is_another_answer_each_time(given: dict[str, Any]) -> None:
    seeds = {build_triton_inputs(given)["seed"] for _ in range(20)}
    assert len(seeds) == 20 and all(0 <= s < 2**63 for s in seeds)
    assert build_triton_inputs({**given, "seed": 3})["seed"] == 3


@pytest.mark.parametrize("given", [{}, {"temperature": 0, "top_p": 0.5}, {"top_k": 1, "temperature": 2}])
def test_greedy_needs_no_seed(given: dict[str, Any]) -> None:
    assert "seed" not in build_triton_inputs(given)


CALLS = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


def test_no_content_beside_tool_calls_is_a_message() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": CALLS}
    for message in (called, {k: v for k, v in called.items() if k != "content"}):
        assert parse_text_messages([message]) == [message]
    for calls in (None, []):
        with pytest.raises(RequestRejected, match=r"messages\[0\].content"):
            parse_text_messages([{**called, "tool_calls": calls}])


@pytest.mark.parametrize("field", ["refusal", "function_call", "audio"])
def test_no_content_beside_what_stands_for_it_is_a_message(field: str) -> None:
    """The server tells whether its template reads the field; the content is not at fault."""
    message = {"role": "assistant", "content": None, field: "no"}
    assert parse_text_messages([message]) == [message]
    for other in ({**message, field: None}, {**message, "role": "user"}):
        with pytest.raises(RequestRejected, match=r"messages\[0\].content"):
            parse_text_messages([other])


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_no_tokens_are_a_completion_of_servers_that_take_them(name: str) -> None:
    """OpenAI's reference: max_tokens of a completion is at least 0; with echo it is the prompt alone."""
    score = {**BASE["completions"], "max_tokens": 0, "echo": True, "logprobs": 1}
    check_openai_request("completions", score, is_triton=False)
    limits = GatewayLimits()
    request = CheckedRequest.compose("/v1/completions", score, "m", "r", is_triton=False, limits=limits)
    assert request.parts[0]["max_tokens"] == 0 and request.parts[0]["echo"] is True
    with pytest.raises(RequestRejected, match="max_tokens: 0 is not at least 1"):
        check_openai_request("completions", {**BASE["completions"], "max_tokens": 0}, is_triton=True)
    for is_triton in (False, True):
        with pytest.raises(RequestRejected, match=f"{name}: 0 is not at least 1") as refused:
            check_openai_request("chat", {**CHAT, name: 0}, is_triton=is_triton)
        assert refused.value.param == name


@pytest.mark.parametrize(
    "part",
    [
        {"type": "file", "file": {"file_id": "http://11.22.33.44/x"}},
        {"type": "file", "file": {"file_data": "http://11.22.33.44/x"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA=="}},
        {"type": "image_url", "image_url": {"url": "http://11.22.33.44/x.png"}},
        {"type": "image_url", "image_url": "https://11.22.33.44/x.png"},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "image_url", "image_url": {"url": ["http://x"]}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "file_id": "http://x"}},
        {
            "type": "image_url",
            "image_url": {"url": "data:image/png;base64,AA=="},
            "file": {"file_id": "http://x"},
        },
        {"type": "input_audio", "input_audio": {"data": "http://11.22.33.44/a", "format": "wav"}},
        {"type": "video_url", "video_url": {"url": "http://11.22.33.44/v"}},
        {"type": "input_image", "image_url": "http://11.22.33.44/v"},
        {"type": "document", "source": {"url": "http://11.22.33.44/v"}},
        {"type": "text", "text": "x", "url": "http://11.22.33.44/v"},
        {"type": "text", "text": {"url": "http://x"}},
        "text",
        {},
    ],
)
def test_contents_that_would_be_fetched_are_refused(part: Any) -> None:
    for role in ("user", "tool", "assistant"):
        messages = [{"role": "user", "content": "x"}, {"role": role, "content": [part]}]
        with pytest.raises(RequestRejected, match=r"messages\[1\]\.content\[0\]"):
            check_openai_request("chat", {**CHAT, "messages": messages}, is_triton=False)
    with pytest.raises(RequestRejected, match=r"messages\[0\]\.content"):
        check_openai_request(
            "chat", {**CHAT, "messages": [{"role": "user", "content": {"url": "http://x"}}]}, is_triton=False
        )


def test_contents_that_are_sent_along_are_passed_on() -> None:
    parts = [
        {"type": "text", "text": "see https://example.org"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    ]
    check_openai_request("chat", {**CHAT, "messages": [{"role": "user", "content": parts}]}, is_triton=False)


@pytest.mark.parametrize("is_triton", [True, False])
@pytest.mark.parametrize("role", ["user", "system", "developer", "tool"])
@pytest.mark.parametrize("message", [{"content": None}, {}])
def test_a_message_without_content_is_refused(message: dict[str, Any], role: str, is_triton: bool) -> None:
    with pytest.raises(RequestRejected) as refused:
        check_openai_request("chat", {**CHAT, "messages": [{"role": role, **message}]}, is_triton=is_triton)
    assert refused.value.param == "messages[0].content"


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "video"}, "messages[0].content[0].type"),
        ({"type": "image_url", "image_url": {"url": "http://x"}}, "messages[0].content[0].image_url.url"),
        (
            {"type": "input_audio", "input_audio": {"data": "http:"}},
            "messages[0].content[0].input_audio.data",
        ),
        ({"type": "text", "text": "x", "more": 1}, "messages[0].content[0].more"),
    ],
)
def test_a_part_is_refused_by_its_own_field(part: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestRejected) as refused:
        message = {"role": "user", "content": [part]}
        check_openai_request("chat", {**CHAT, "messages": [message]}, is_triton=False)
    assert refused.value.param == param


def test_tools_that_would_be_connected_to_are_refused() -> None:
    for tool in ({"type": "mcp", "server_url": "http://x"}, {"type": "web_search"}, "x"):
        with pytest.raises(RequestRejected, match=r"tools\[0\]"):
            check_openai_request("chat", {**CHAT, "tools": [tool]}, is_triton=False)


@pytest.mark.parametrize("prompt", ["", "x", ["x"], ["x", ""]])
def test_a_prompt_is_a_text_or_several(prompt: Any) -> None:
    check_openai_request("completions", {"model": "m", "prompt": prompt}, is_triton=True)
    assert parse_prompts(prompt) == (prompt if isinstance(prompt, list) else [prompt])


@pytest.mark.parametrize("prompt", [[], [1, 2], [[1]], ["x", 1], ["x"] * 1000])
def test_other_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(RequestRejected) as refused:
        check_openai_request("completions", {"model": "m", "prompt": prompt}, is_triton=True)
    assert refused.value.param == "prompt"


@pytest.mark.parametrize(
    ("param", "more"),
    [
        ("temperature", {"temperature": True}),
        ("temperature", {"temperature": "1"}),
        ("temperature", {"temperature": float("nan")}),
        ("top_p", {"top_p": -0.1}),
        ("top_k", {"top_k": 2.5}),
        ("seed", {"seed": -(2**63) - 1}),
        ("stop", {"stop": ["a", 1]}),
        ("stop", {"stop": ""}),
        ("stop", {"stop": ["a", "b" * 1025]}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": 1, "max_completion_tokens": 2}),
        ("stream_options", {"stream_options": {"include_usage": True}}),
        ("stream_options.include", {"stream": True, "stream_options": {"include": True}}),
        ("stream_options.include_usage", {"stream": True, "stream_options": {"include_usage": 1}}),
        ("logprobs", {"logprobs": 0}),
        ("n", {"n": True}),
        ("prompt", {"prompt": "x"}),
        ("api_key", {"api_key": "x"}),
        ("messages", {"messages": None}),
    ],
)
def test_refused_by_name(param: str, more: dict[str, Any]) -> None:
    with pytest.raises(RequestRejected) as refused:
        check_openai_request("chat", {**CHAT, **more}, is_triton=True)
    assert refused.value.param == param


def test_a_server_of_openais_interface_gets_what_triton_does_not_serve() -> None:
    check_openai_request(
        "chat",
        {**CHAT, "n": 4, "tools": [{}], "logprobs": True, "messages": [{"role": "x", "image": 1}]},
        is_triton=False,
    )


@pytest.mark.parametrize(
    ("param", "more"),
    [
        # LiteLLM would make a text of the first, and 3e29 of the second.
        ("logit_bias", {"logit_bias": {"1": float("inf")}}),
        ("chat_template_kwargs", {"chat_template_kwargs": {"x": [{"y": 3 * 10**29}]}}),
        ("tools", {"tools": [{"function": {"parameters": {"x": -(2**63) - 1}}}]}),
        ("seed", {"seed": 10**4000}),
        ("temperature", {"temperature": 10**400}),
        ("n", {"n": 10**9}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 10**6}),
        ("messages[0]", {"messages": [None]}),
        ("messages[1].role", {"messages": [{"role": "user", "content": "x"}, {"content": "x"}]}),
        ("messages[0].role", {"messages": [{"role": ["user"], "content": "x"}]}),
    ],
)
def test_what_no_server_gets(param: str, more: dict[str, Any]) -> None:
    for is_triton in (False, True):
        with pytest.raises(RequestRejected) as refused:
            check_openai_request("chat", {**CHAT, **more}, is_triton=is_triton)
        if not is_triton:
            assert refused.value.param == param


def test_numbers_of_64_bits_are_passed_on() -> None:
    numbers = {"x": [-(2**63), 2**64 - 1, 1.7e308, -0.0, True]}
    check_openai_request("chat", {**CHAT, "chat_template_kwargs": numbers}, is_triton=True)


def test_parts_of_a_message_are_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert parse_text_messages([{"role": "user", "content": parts}]) == [{"role": "user", "content": "a\nb"}]


@pytest.mark.parametrize("key", ["cache_control", "prompt_cache_breakpoint", "annotations"])
def test_no_field_of_a_part_is_dropped(key: str) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a", key: {"type": "ephemeral"}}]}]
    for is_triton in (False, True):
        with pytest.raises(RequestRejected, match=key) as refused:
            check_openai_request("chat", {**CHAT, "messages": messages}, is_triton=is_triton)
        assert refused.value.param == f"messages[0].content[0].{key}"
    # null says nothing.
    without = [{"role": "user", "content": [{"type": "text", "text": "a", key: None}]}]
    assert parse_text_messages(without) == [{"role": "user", "content": "a"}]


def test_a_long_name_is_shown_in_part() -> None:
    with pytest.raises(RequestRejected) as refused:
        check_openai_request("chat", {**CHAT, "x" * 10_000: 1}, is_triton=True)
    assert len(refused.value.message) < 200
    json.dumps(refused.value.as_json())


@pytest.mark.parametrize("is_triton", [False, True])
def test_a_stream_s_options_with_the_values_that_change_nothing(is_triton: bool) -> None:
    for options in ({"include_obfuscation": False}, {"include_usage": None}, {"include_obfuscation": None}):
        body = {**CHAT, "stream": True, "n": 1, "stream_options": options}
        check_openai_request("chat", body, is_triton=is_triton)
    for options in ({"include_obfuscation": True}, {"include_usage": 1}, {"other": None}):
        with pytest.raises(RequestRejected, match=next(iter(options))):
            check_openai_request("chat", {**CHAT, "stream": True, "stream_options": options}, is_triton=False)


@pytest.mark.parametrize(
    ("prompt", "count"),
    [("a", 1), (["a"], 1), (["a", "b"], 2), ([5, 6], 1), ([[5], [6], [7]], 3), ([], 1)],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_list_counts_as_so_many_requests(prompt: Any, count: int, stream: bool) -> None:
    body = {"model": "m", "prompt": prompt, "stream": stream}
    limits = GatewayLimits()
    request = CheckedRequest.compose("/v1/completions", body, "m", "r", is_triton=False, limits=limits)
    assert request.prompts == count
    assert len(request.parts) == 1


@pytest.mark.slow
def test_every_parameter_of_openais_client_has_a_row(gateway_python: Path) -> None:
    from openai.resources.chat.completions import Completions as Chat
    from openai.resources.completions import Completions

    own = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
    for route, create in (("chat", Chat.create), ("completions", Completions.create)):
        rows = {name for name, row in PARAMETERS.items() if route in row.get("routes", (route,))}
        assert set(inspect.signature(create).parameters) - own <= rows


# OpenAI API reference, create chat completion: what this gateway passes on to no server.
NOWHERE: list[tuple[str, list[Any], list[Any]]] = [
    ("safety_identifier", ["a"], [1]),
    ("prompt_cache_key", ["a"], [1]),
    # Hints to a cache that no server here has: they change no answer.
    ("prompt_cache_retention", ["in_memory", "24h"], ["48h", 1]),
    ("prompt_cache_options", [{"mode": "explicit", "ttl": "30m"}], ["30m"]),
    ("moderation", [], [{"policy": {"input": {"mode": "block"}}}]),
    ("metadata", [{}], [{"a": "b"}]),
    ("service_tier", ["auto", "default"], ["flex", "priority"]),
    ("modalities", [["text"]], [["text", "audio"], []]),
    ("audio", [], [{"voice": "ash", "format": "mp3"}]),
    ("prediction", [], [{"type": "content", "content": "a"}]),
    ("verbosity", ["medium"], ["low"]),
    ("web_search_options", [], [{}]),
    ("functions", [[]], [[{"name": "f"}]]),
    ("function_call", ["none"], ["auto", {"name": "f"}]),
]


@pytest.mark.parametrize("is_triton", [False, True])
@pytest.mark.parametrize(("name", "accepted", "refused"), NOWHERE)
def test_openais_other_parameters_are_known_and_reach_no_server(
    name: str, accepted: list[Any], refused: list[Any], is_triton: bool
) -> None:
    route, limits = "/v1/chat/completions", GatewayLimits()
    for value in (None, *accepted):
        body = {**CHAT, name: value}
        check_openai_request("chat", body, is_triton=is_triton)
        request = CheckedRequest.compose(route, body, "m", "r", is_triton=is_triton, limits=limits)
        assert name not in request.body
    for value in refused:
        with pytest.raises(RequestRejected) as error:
            check_openai_request("chat", {**CHAT, name: value}, is_triton=is_triton)
        assert error.value.param == name and "no such parameter" not in error.value.message
