"""Every mode of each route by OpenAI's client: streamed or not, usage or not, one server and several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from faults.setting import Served

pytestmark = pytest.mark.slow
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def modes(start_gateway: Callable[..., Any], tiny: Served) -> Iterator[Any]:
    """A gateway whose model `two` has two servers, which are one tritonserver."""
    server = {"kind": "triton", "url": tiny.client.url, "model": "ensemble"}
    # A gateway is a server of OpenAI's interface.
    with start_gateway({"models": {"one": [server], "two": [server, server]}}) as inner:
        key = {"keyFile": "operator"}
        outer = {"kind": "openai", "url": f"{inner.url}/v1", "model": "one", **key}
        models = {"one": [server], "two": [server, server], "openai": [outer], "openai-two": [outer, outer]}
        with start_gateway({"models": models}) as gateway:
            yield gateway.client()


MODELS = ("one", "two", "openai", "openai-two")
OPTIONS = ({}, {"stream_options": {"include_usage": False}}, {"stream_options": {"include_usage": True}})


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("options", OPTIONS)
def test_a_streamed_completion_has_its_text(
    modes: Any, tiny: Served, model: str, options: dict[str, Any]
) -> None:
    asked = {"model": model, "prompt": PROMPT, "max_tokens": 9}
    direct = tiny.client.generate("ensemble", {"text_input": PROMPT, "max_tokens": 9})
    whole = modes.completions.create(**asked)
    assert whole.choices[0].text == direct["text_output"]
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (direct["prompt_tokens"], 9)
    assert whole.object == "text_completion" and whole.id.startswith("cmpl-") and whole.model == model
    chunks = list(modes.completions.create(**asked, stream=True, **options))
    check_stream(chunks, options, model, "text_completion", "cmpl-")
    assert "".join(c.choices[0].text for c in chunks if c.choices) == direct["text_output"]
    assert all(isinstance(c.choices[0].text, str) for c in chunks if c.choices)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("options", OPTIONS)
def test_a_streamed_chat_has_its_text(modes: Any, model: str, options: dict[str, Any]) -> None:
    asked = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 9}
    asked["extra_body"] = {"ignore_eos": True}
    whole = modes.chat.completions.create(**asked)
    assert whole.choices[0].message.content and whole.usage.completion_tokens == 9
    assert whole.object == "chat.completion" and whole.id.startswith("chatcmpl-") and whole.model == model
    chunks = list(modes.chat.completions.create(**asked, stream=True, **options))
    check_stream(chunks, options, model, "chat.completion.chunk", "chatcmpl-")
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"


def check_stream(chunks: list[Any], options: dict[str, Any], model: str, kind: str, prefix: str) -> None:
    """Check the properties of all OpenAI streams."""
    asked = options.get("stream_options", {}).get("include_usage", False)
    usages = [c for c in chunks if c.usage is not None]
    assert [c.choices for c in chunks if not c.choices] == ([[]] if asked else [])
    assert len(usages) == (1 if asked else 0)
    if asked:
        assert chunks[-1].usage.completion_tokens == 9
        assert chunks[-1].usage.total_tokens == chunks[-1].usage.prompt_tokens + 9
    finished = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert [f for f in finished if f] == ["length"] and finished[-1] == "length"
    assert {c.object for c in chunks} == {kind} and {c.model for c in chunks} == {model}
    [identity] = {c.id for c in chunks}
    assert identity.startswith(prefix)
