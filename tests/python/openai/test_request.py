"""What a request may say: every parameter is passed on or refused by name, whatever comes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from enginix.openai.request import PARAMETERS, Refused, check, inputs, texts
from enginix.tables import table

CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
BASE: dict[str, dict[str, Any]] = {"chat": CHAT, "completions": {"model": "m", "prompt": "x"}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def test_inputs_that_the_table_names_are_the_repositorys() -> None:
    known = set(table("triton_reference")["models"]["ensemble"]["inputs"])
    known |= {t["name"] for t in table("triton_chat")["models"]["ensemble"]["inputs"]}
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
        check(route, {**BASE[route], **body}, triton=triton)
    except Refused as e:
        assert e.status == 400 and e.message
        return
    assert body.keys() <= PARAMETERS.keys()
    if not triton:
        return
    found = inputs(body, 7)
    for name, value in body.items():
        row = PARAMETERS[name]
        if "triton" in row and value is not None and name != "ignore_eos":
            assert row["triton"] in found


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, {"max_tokens": 9}),
        ({"max_tokens": 3}, {"max_tokens": 3}),
        ({"max_completion_tokens": 3, "max_tokens": None}, {"max_tokens": 3}),
        ({"stop": "a"}, {"max_tokens": 9, "stop_words": ["a"]}),
        ({"stop": ["a", "b"]}, {"max_tokens": 9, "stop_words": ["a", "b"]}),
        ({"ignore_eos": True}, {"max_tokens": 9, "end_id": -1}),
        ({"ignore_eos": False}, {"max_tokens": 9}),
        ({"temperature": 0, "n": 1, "user": "u"}, {"max_tokens": 9, "temperature": 0}),
        ({"chat_template_kwargs": {"a": "ü"}}, {"max_tokens": 9, "chat_template_args": '{"a": "ü"}'}),
    ],
)
def test_inputs(given: dict[str, Any], found: dict[str, Any]) -> None:
    check("chat", {**CHAT, **given}, triton=True)
    assert inputs(given, 9) == found


@pytest.mark.parametrize(
    ("param", "more"),
    [
        ("temperature", {"temperature": True}),
        ("temperature", {"temperature": "1"}),
        ("temperature", {"temperature": float("nan")}),
        ("top_p", {"top_p": 0}),
        ("top_k", {"top_k": 2.5}),
        ("seed", {"seed": -1}),
        ("stop", {"stop": ["a", 1]}),
        ("stop", {"stop": ""}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": 1, "max_completion_tokens": 2}),
        ("stream_options", {"stream_options": {"include_usage": True}}),
        ("stream_options", {"stream": True, "stream_options": {"include": True}}),
        ("logprobs", {"logprobs": 0}),
        ("n", {"n": True}),
        ("prompt", {"prompt": "x"}),
        ("api_key", {"api_key": "x"}),
        ("messages", {"messages": None}),
    ],
)
def test_refused_by_name(param: str, more: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        check("chat", {**CHAT, **more}, triton=True)
    assert refused.value.param == param


def test_a_server_of_openais_interface_gets_what_triton_does_not_serve() -> None:
    check("chat", {**CHAT, "n": 4, "tools": [{}], "logprobs": True, "messages": [{"image": 1}]}, triton=False)


def test_parts_of_a_message_are_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert texts([{"role": "user", "content": parts}]) == [{"role": "user", "content": "a\nb"}]


def test_a_long_name_is_shown_in_part() -> None:
    with pytest.raises(Refused) as refused:
        check("chat", {**CHAT, "x" * 10_000: 1}, triton=True)
    assert len(refused.value.message) < 200
    json.dumps(refused.value.as_json())
