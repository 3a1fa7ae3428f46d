"""Answers of a server with OpenAI's interface are the server's, whatever LiteLLM makes of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginix.gateway.events import MAX_BYTES, EventTooLarge
from enginix.gateway.recorded_answer import RecordedAnswer
from enginix.gateway.response_rewrite import EventRewriter, rewrite_answer

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def encode_events(*rows: Any) -> bytes:
    return b"".join(
        b"data: " + (r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n\n" for r in rows
    )


def record(path: str, raw: bytes, *, is_stream: bool, asked: str = CHAT) -> RecordedAnswer:
    answer = RecordedAnswer(asked, is_stream=is_stream)
    answer.begin(path)
    # Pieces end anywhere.
    for i in range(0, len(raw), 7):
        answer.feed(raw[i : i + 7])
    answer.end() if is_stream else None
    return answer


def test_a_whole_answer_is_the_servers() -> None:
    said = {
        "id": "x",
        "model": "theirs",
        "choices": [{"index": 0, "message": {"content": "hi"}}],
        "odd": None,
    }
    recorded = record("/v1/chat/completions", json.dumps(said).encode(), is_stream=False).read_whole()
    litellm = {**said, "usage": {"prompt_tokens": 7, "prompt_tokens_details": None}}
    assert rewrite_answer(json.dumps(litellm).encode(), None, "m", recorded) == {**said, "model": "m"}


@pytest.mark.parametrize("raw", [b"", b"x", b"[]", b'{"error": {}}', b'{"choices": null}', b"[" * 100_000])
def test_what_is_no_answer_is_left_to_litellm(raw: bytes) -> None:
    assert record("/chat/completions", raw, is_stream=False).read_whole() is None


def test_an_answer_of_another_route_is_left_to_litellm() -> None:
    """LiteLLM asks some models for a chat where the client asks for a completion, and converts the answer."""
    raw = b'{"choices": []}'
    assert record("/v1/chat/completions", raw, is_stream=False, asked=COMPLETIONS).read_whole() is None
    assert record("/v1/completions", raw, is_stream=False, asked=COMPLETIONS).read_whole() is not None
    assert record("/v1/completions", raw, is_stream=True).take_chunks() is None
    assert RecordedAnswer(CHAT, is_stream=True).take_chunks() is None


def test_chunks_are_the_servers() -> None:
    first: dict[str, Any] = {"id": "x", "created": 5, "model": "theirs"}
    first["choices"] = [{"index": 1, "delta": {"content": "h", "reasoning": None}, "logprobs": None}]
    last = {**first, "choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]}
    usage = {**first, "choices": [], "usage": {"prompt_tokens": 1, "odd": {"a": 2}}}
    raw = encode_events(first, b"not JSON", last, {"error": {"message": "m"}}, usage, b"[DONE]", first)
    rewriter = EventRewriter(model="m")
    rewriter.begin_answer(record(CHAT, raw, is_stream=True))
    litellm = encode_events({**first, "created": 9, "citations": []}, b"[DONE]")
    assert rewriter.read(litellm, more=False) == [{**first, "model": "m"}, {**last, "model": "m"}, "[DONE]"]
    assert rewriter.usage == {"prompt_tokens": 1, "odd": {"a": 2}}


def test_what_came_before_an_error_is_sent() -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "h"}}]}
    rewriter = EventRewriter()
    rewriter.begin_answer(record(CHAT, encode_events(chunk), is_stream=True))
    found = rewriter.read(encode_events({"error": {"message": "gone", "code": "502"}}), more=False)
    assert found[0] == chunk and isinstance(found[1], dict) and found[1]["error"]["message"] == "gone"


def test_an_event_that_is_too_large_is_an_error() -> None:
    answer = RecordedAnswer(CHAT, is_stream=True)
    answer.begin(CHAT)
    answer.feed(b"data: " + b"x" * MAX_BYTES)
    with pytest.raises(EventTooLarge):
        answer.take_chunks()


@pytest.mark.parametrize("ends", [(0,), (1,), ()])
def test_a_choice_without_its_end_is_no_whole_answer(ends: tuple[int, ...]) -> None:
    rows = [{"choices": [{"index": i, "delta": {"content": "h"}, "finish_reason": None}]} for i in (0, 1)]
    last = [{"choices": [{"index": i, "delta": {}, "finish_reason": "stop"}]} for i in ends]
    # What comes after a choice's end does not begin it anew.
    last += [{"choices": [{"index": i, "delta": {}, "finish_reason": None}]} for i in ends]
    rewriter = EventRewriter()
    rewriter.begin_answer(record(CHAT, encode_events(*rows, *last, b"[DONE]"), is_stream=True))
    *chunks, error = rewriter.read(encode_events(b"[DONE]"), more=False)
    assert chunks == [*rows, *last]
    assert isinstance(error, dict) and "finish_reason" in error["error"]["message"]
    assert rewriter.status == 502
