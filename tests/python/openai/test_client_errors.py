"""A server's words for the client: full is to be tried again at once, unreachable when it has rested."""

from __future__ import annotations

import pytest

from enginix.gateway.client_errors import restore_parameter_names, rewrite_backend_error
from enginix.triton.models.generation import check_lengths
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
