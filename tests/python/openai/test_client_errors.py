"""A server's words for the client: full is to be tried again at once, unreachable when it has rested."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginix.gateway.client_errors import restore_parameter_names, rewrite_backend_error
from enginix.triton.models.channel import LATER
from enginix.triton.models.generation import check_lengths
from enginix.triton.models.remote_channel import RemoteChannel
from enginix.triton.models.request import RequestError


@pytest.mark.parametrize(
    ("message", "status", "retry_after"),
    [
        ("2 requests are running or waiting already; try again later", 503, 1),
        ("slow down", 429, 1),
        ("the model's server cannot be reached", 503, None),
        ("the model's server broke the answer off", 502, None),
    ],
)
def test_retry_after(message: str, status: int, retry_after: int | None) -> None:
    error = rewrite_backend_error(message, status)
    assert (error.message, error.status, error.retry_after) == (message, status, retry_after)


@pytest.mark.parametrize(("prompt", "answer"), [(3000, 1), (1911, 256)])
def test_lengths_in_the_very_words_of_the_models(prompt: int, answer: int) -> None:
    with pytest.raises(RequestError) as refused:
        check_lengths(prompt, answer, 0, 2048)
    error = restore_parameter_names(
        rewrite_backend_error(str(refused.value), 400), {"messages": [], "max_completion_tokens": 256}
    )
    assert error.code == "context_length_exceeded" and "maximum context length is 2048" in error.message
    assert error.param == ("messages" if prompt > 2048 else "max_completion_tokens")


def test_an_answer_above_the_limit_has_the_code_of_lengths() -> None:
    with pytest.raises(RequestError) as refused:
        check_lengths(1, 99999, 2047, 2048)
    error = rewrite_backend_error(str(refused.value), 400)
    assert (error.code, error.param) == ("context_length_exceeded", "max_tokens")


@pytest.mark.parametrize(
    ("message", "param", "said"),
    [
        ("text_input is empty: there is no token to continue", "prompt", "prompt is empty"),
        ("chat_template_args: no", "chat_template_kwargs", "chat_template_kwargs: no"),
        ("messages[0].name: no", "messages", "messages[0].name: no"),
        ("a text_input of a client: no", None, "a text_input of a client: no"),
    ],
)
def test_names_are_the_clients(message: str, param: str | None, said: str) -> None:
    error = rewrite_backend_error(message, 400)
    assert error.param == param and error.message.startswith(said)


def lost(reason: str) -> str:
    """An error of the channel to the executor, as it stands in its source."""
    return f"tensorrt_llm, which computes, is not reached{reason}; {LATER}"


@pytest.mark.parametrize("reason", [" any more", " (/tmp/enginix-serve-1/executor)"])
@pytest.mark.parametrize("status", [502, 503])
def test_the_executor_that_is_lost_is_the_clients_model(reason: str, status: int) -> None:
    """In a stream the error has status 502, before it 503."""
    error = rewrite_backend_error(lost(reason), status, "tiny")
    said = reason if reason == " any more" else ""
    assert error.message == f"the server of tiny is not reached{said}; {LATER}"
    assert error.status == status


def test_the_channel_says_what_is_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enginix.triton.models.remote_channel.REACHED", 0.01)
    channel = RemoteChannel(tmp_path / "none")
    try:
        channel.add("1", {"prompt": [1], "end_ids": []}, "")
        [event] = channel.receive(0) or []
        error = rewrite_backend_error(str(event.error), 503, "tiny")
        assert error.message == f"the server of tiny is not reached; {LATER}"
    finally:
        channel.close()
