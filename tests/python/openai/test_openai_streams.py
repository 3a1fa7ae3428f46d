"""Streams and errors of servers of OpenAI's interface, through the real LiteLLM; a stand-in sends them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from openai_standin import StandIn, openai_chunks

pytestmark = pytest.mark.slow
USER = [{"role": "user", "content": "x"}]
ROUTES = ("/v1/chat/completions", "/v1/completions")
TEXTS = [{"role": "assistant", "content": "h"}, {"content": "i"}]


@pytest.fixture(scope="module")
def client(start_gateway: Callable[..., Any], standin: StandIn) -> Iterator[Any]:
    server = {"kind": "openai", "url": f"{standin.url}/v1", "model": "theirs"}
    with start_gateway({"models": {"other": [server]}}) as gateway:
        yield gateway.client()


@pytest.fixture(autouse=True)
def restored(standin: StandIn) -> Iterator[None]:
    yield
    standin.rows = standin.error = None


def ask(client: Any, route: str, **more: Any) -> Any:
    if route.endswith("/chat/completions"):
        return client.chat.completions.create(model="other", messages=USER, **more)
    return client.completions.create(model="other", **{"prompt": "x", **more})


def read_until_error(client: Any, route: str) -> tuple[list[Any], Any]:
    """Return the chunks of a stream, and the error that ends it."""
    import openai

    chunks: list[Any] = []
    with pytest.raises(openai.APIError) as failed:
        for chunk in ask(client, route, stream=True):
            chunks.append(chunk)
    return chunks, failed.value


@pytest.mark.parametrize("route", ROUTES)
def test_a_stream_that_ends_without_a_finish_reason_is_no_whole_answer(
    client: Any, standin: StandIn, route: str
) -> None:
    """A server that is killed behind a proxy ends its stream like this; LiteLLM says `stop` by itself."""
    *begun, _ = openai_chunks(route, TEXTS, usage=False)
    for rows in (begun, [*begun, "[DONE]"]):
        standin.rows = rows
        chunks, error = read_until_error(client, route)
        assert len(chunks) == 2 and "finish_reason" in str(error)
        assert not any(c.choices[0].finish_reason for c in chunks)
        assert "itellm" not in str(error)


@pytest.mark.parametrize("route", ROUTES)
def test_an_error_in_a_stream_has_the_servers_words(client: Any, standin: StandIn, route: str) -> None:
    rows = openai_chunks(route, TEXTS, usage=False)
    standin.rows = [*rows[:2], {"error": {"message": "the engine died", "type": "x", "code": 500}}]
    _, error = read_until_error(client, route)
    assert error.body["message"] == "the engine died"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("status", [400, 413, 422, 429, 500, 503])
def test_an_error_has_the_servers_words_and_parameter(
    client: Any, standin: StandIn, route: str, stream: bool, status: int
) -> None:
    import openai

    said = 'temperature: it\'s "too" hot'
    standin.error = (status, {"message": said, "type": "x", "param": "temperature", "code": "hot"})
    with pytest.raises(openai.APIStatusError) as refused:
        list(ask(client, route, stream=stream))
    assert (refused.value.status_code, refused.value.body["message"]) == (status, said)
    assert refused.value.param == "temperature"


def test_each_text_of_a_streamed_list_is_a_choice_of_its_own(client: Any, standin: StandIn) -> None:
    for prompt in (["one", "two", "three"], [[5], [6, 7], [8]]):
        before = len(standin.asked)
        options = {"stream_options": {"include_usage": True}}
        chunks = list(ask(client, ROUTES[1], prompt=prompt, stream=True, **options))
        asked = [body["prompt"] for _, body, _ in standin.asked[before:]]
        assert sorted(map(str, asked)) == sorted(map(str, prompt))
        for index in range(3):
            mine = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == index]
            assert "".join(c.text for c in mine) == "hi" and mine[-1].finish_reason == "stop"
        assert chunks[-1].usage.total_tokens == 6 and len({c.id for c in chunks}) == 1
    # The ids of one prompt are one.
    before = len(standin.asked)
    list(ask(client, ROUTES[1], prompt=[5, 6], stream=True))
    assert [body["prompt"] for _, body, _ in standin.asked[before:]] == [[5, 6]]
