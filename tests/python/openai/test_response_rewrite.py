"""LiteLLM's answers as OpenAI's clients expect them: its own names of fields are in none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginix.gateway.response_rewrite import EventRewriter, rewrite_answer, rewrite_refusal

# As LiteLLM 1.104 returns them for a server of OpenAI's interface.
OWN = {"provider_specific_fields": {"refusal": None, "reasoning": "because"}}


def check_fields(answer: dict[str, Any], name: str) -> None:
    assert "provider_specific_fields" not in json.dumps(answer)
    message = answer["choices"][0][name]
    assert (message["refusal"], message["reasoning"], message["content"]) == (None, "because", "hi")


def test_a_whole_answer_has_the_servers_fields() -> None:
    message = {"role": "assistant", "content": "hi", **OWN}
    choice = {"index": 0, "message": message, "provider_specific_fields": {}}
    check_fields(rewrite_answer(json.dumps({"choices": [choice]}).encode(), None, "m"), "message")


def test_a_chunk_has_the_servers_fields() -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "hi", **OWN}}], "provider_specific_fields": None}
    [found] = EventRewriter().read(b"data: " + json.dumps(chunk).encode() + b"\n\n", more=False)
    assert isinstance(found, dict)
    check_fields(found, "delta")


@pytest.mark.parametrize("choices", [None, [], ["x"], [{"message": None}], [{"message": "x"}]])
def test_answers_without_such_fields_stay(choices: Any) -> None:
    answer = rewrite_answer(json.dumps({"choices": choices, "id": "i"}).encode(), None, "m")
    assert answer == {"choices": choices, "id": "i", "model": "m"}


SAID = "the model's server sent what is no answer"
QUOTED = "{'error': {'message': 'it\\'s gone', 'param': 'temperature', 'code': None}}"


@pytest.mark.parametrize(
    ("message", "wanted", "param"),
    [
        (f"litellm.BadGatewayError: BadGatewayError: OpenAIException - {SAID}", SAID, None),
        (f"BadGatewayError: OpenAIException - {SAID}", SAID, None),
        (f"APIConnectionError: Text-completion-openaiException - {SAID}", SAID, None),
        (f"OpenAIException - {SAID} LiteLLM: model group x", SAID, None),
        (f"Text-completion-openaiException - {SAID} Original exception: A: litellm.A: B", SAID, None),
        (f"Error code: 502 - {QUOTED}", "it's gone", "temperature"),
        ("Error code: 502 - {'error': 'gone'}", "Error code: 502 - {'error': 'gone'}", None),
        ("Error code: 502 - {__import__('os')}", "Error code: 502 - {__import__('os')}", None),
        ("a text of - the server: Original exception", "a text of - the server: Original exception", None),
    ],
)
def test_an_error_has_the_servers_words_alone(message: str, wanted: str, param: str | None) -> None:
    raw = json.dumps({"error": {"message": message, "code": "502"}}).encode()
    error = rewrite_refusal(raw, 502)
    assert (error.message, error.param, error.status) == (wanted, param, 502)
