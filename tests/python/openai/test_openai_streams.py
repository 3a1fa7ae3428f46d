"""Streams and errors of servers of OpenAI's interface, through the real LiteLLM; a stand-in sends them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from openai_standin import StandIn, openai_answer, openai_chunks

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
    standin.rows = standin.error = standin.whole = None
    standin.is_compressed, standin.redirect = False, ""


def ask(client: Any, route: str, **more: Any) -> Any:
    if route.endswith("/chat/completions"):
        return client.chat.completions.create(model="other", messages=USER, **more)
    return client.completions.create(model="other", **{"prompt": "x", **more})


# What LiteLLM would leave out, change, or make up where the server says nothing.
USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 2,
    "total_tokens": 9,
    "prompt_tokens_details": {"cached_tokens": 3},
}


@pytest.mark.parametrize("usage", [None, USAGE])
@pytest.mark.parametrize("route", ROUTES)
def test_an_answer_says_what_the_server_says_and_no_more(
    client: Any, standin: StandIn, route: str, usage: dict[str, Any] | None
) -> None:
    import httpx

    head = {"authorization": f"Bearer {client.api_key}"}
    body = {"model": "other", **({"messages": USER} if "chat" in route else {"prompt": "x"})}
    rows = [
        {**row, "system_fingerprint": None, "odd": [1]} for row in openai_chunks(route, TEXTS, usage=False)
    ]
    rows[1]["choices"][0]["logprobs"] = None
    last = [{**rows[0], "choices": [], "usage": usage}] if usage else []
    standin.rows = [*rows, *last, "[DONE]"]
    for options in ({}, {"stream_options": {"include_usage": True}}):
        answer = httpx.post(
            f"{str(client.base_url).removesuffix('/v1/')}{route}",
            json={**body, "stream": True, **options},
            headers=head,
            timeout=600,
        )
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        assert events.pop() == "[DONE]"
        wanted = [{**row, "model": "other"} for row in [*rows, *(last if options else [])]]
        assert [json.loads(event) for event in events] == wanted
    whole = {**standin_answer(route), "usage": usage} if usage else standin_answer(route)
    standin.whole = whole
    answer = httpx.post(
        f"{str(client.base_url).removesuffix('/v1/')}{route}", json=body, headers=head, timeout=600
    )
    assert answer.json() == {**whole, "model": "other"}


def standin_answer(route: str) -> dict[str, Any]:
    """Return a whole answer with a field that OpenAI's clients do not know, without a usage."""
    answer = openai_answer(route, {"role": "assistant", "content": "hi", "reasoning_content": "because"})
    return {k: v for k, v in {**answer, "odd": {"a": None}}.items() if k != "usage"}


def test_no_tokens_with_echo_reach_the_server(client: Any, standin: StandIn) -> None:
    asked = {"max_tokens": 0, "echo": True, "logprobs": 1, "top_p": 0}
    ask(client, ROUTES[1], **asked)
    assert {name: standin.asked[-1][1].get(name) for name in asked} == asked


def read_until_error(client: Any, route: str, **more: Any) -> tuple[list[Any], Any]:
    """Return the chunks of a stream, and the error that ends it."""
    import openai

    chunks: list[Any] = []
    with pytest.raises(openai.APIError) as failed:
        for chunk in ask(client, route, stream=True, **more):
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


@pytest.mark.parametrize("route", ROUTES)
def test_every_choice_of_a_stream_arrives(client: Any, standin: StandIn, route: str) -> None:
    """LiteLLM would give one choice its end, and those of a completion the index 0."""
    more = {"n": 2} if "chat" in route else {"prompt": ["one", "two"], "logprobs": 1}
    rows = []
    for row in openai_chunks(route, TEXTS, usage=False):
        for index in (0, 1):
            rows.append(
                {**row, "choices": [{**row["choices"][0], "index": index, "logprobs": {"odd": index}}]}
            )
    standin.rows = [*rows, "[DONE]"]
    chunks = list(ask(client, route, stream=True, **more))
    assert {name: standin.asked[-1][1][name] for name in more} == more
    assert [c.choices[0].index for c in chunks] == [0, 1] * 3
    assert all(c.choices[0].logprobs.odd == c.choices[0].index for c in chunks)
    assert [c.choices[0].finish_reason for c in chunks] == [None] * 4 + ["stop"] * 2
    # One choice without its end is no whole answer.
    standin.rows = [*rows[:-1], "[DONE]"]
    chunks, error = read_until_error(client, route, **more)
    assert len(chunks) == 5 and "finish_reason" in str(error)


@pytest.mark.parametrize("route", ROUTES)
def test_a_converted_stream_of_several_choices_is_an_error(client: Any, standin: StandIn, route: str) -> None:
    """A server may compress although it is asked not to: then LiteLLM alone reads the answer."""
    standin.is_compressed = True
    more = {"n": 2} if "chat" in route else {"logprobs": 1}
    _, error = read_until_error(client, route, **more)
    assert error.status_code == 502 and "ask without stream" in str(error)
    # One choice is LiteLLM's.
    chunks = list(ask(client, route, stream=True))
    texts = [c.choices[0].delta.content if "chat" in route else c.choices[0].text for c in chunks]
    assert "".join(text or "" for text in texts) == "hi"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_no_server_leads_elsewhere(client: Any, standin: StandIn, route: str, stream: bool) -> None:
    import openai

    other = StandIn()
    try:
        standin.redirect = f"{other.url}{route}"
        with pytest.raises(openai.InternalServerError) as failed:
            list(ask(client, route, stream=stream))
        assert failed.value.status_code == 502 and other.asked == []
    finally:
        other.shutdown()
