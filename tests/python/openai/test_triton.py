"""The client of Triton's generate extension, over a stand-in transport: every failure is one error."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginix.gateway import triton
from enginix.gateway.call import TritonCall
from enginix.gateway.triton import BackendError, Piece
from enginix.triton.models.generation import check_lengths
from enginix.triton.models.request import RequestError
from environments import environment

COUNTS = {"prompt_tokens": 3, "completion_tokens": 2}
FIRST = {"text_output": "a", "finish_reason": "", **COUNTS}
LAST = {"text_output": "b", "finish_reason": "stop", **COUNTS}


def asked(answer: Callable[[httpx.Request], httpx.Response]) -> list[Piece]:
    async def run() -> list[Piece]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
            return [
                p async for p in triton.stream_pieces(client, "http://h:1/", "ensemble", {"max_tokens": 2})
            ]

    return asyncio.run(run())


def events(*rows: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(r).encode() + b"\n\n" for r in rows)


def answered(
    call: TritonCall, server: Callable[[dict[str, Any]], httpx.Response]
) -> tuple[list[Piece], list[int]]:
    """Return a call's result, and the max_tokens of each request to the server."""
    questions: list[int] = []

    def transport(request: httpx.Request) -> httpx.Response:
        question = json.loads(request.content)
        questions.append(question["max_tokens"])
        return server(question)

    async def run() -> list[Piece]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(transport)) as client:
            return [p async for p in triton.stream_answer(client, "http://h:1/", "ensemble", call)]

    return asyncio.run(run()), questions


def server_of(prompt: int, holds: int, limit: int) -> Callable[[dict[str, Any]], httpx.Response]:
    """Refuses lengths with the very words of the models."""

    def answer(question: dict[str, Any]) -> httpx.Response:
        try:
            check_lengths(prompt, question["max_tokens"], limit, holds)
        except RequestError as e:
            return httpx.Response(400, content=events({"error": str(e)}))
        return httpx.Response(200, content=events(FIRST, LAST))

    return answer


@pytest.mark.parametrize(
    ("most", "prompt", "limit", "asked_with"),
    [
        (None, 1911, 0, [2**31 - 1, 137]),
        (None, 1911, 1000, [2**31 - 1, 1000, 137]),
        (None, 5, 1000, [2**31 - 1, 1000]),
        (256, 1911, 0, [256, 137]),
        (256, 5, 0, [256]),
        (256, 5, 100, [256, 100]),
    ],
)
def test_no_max_tokens_is_what_fits(most: int | None, prompt: int, limit: int, asked_with: list[int]) -> None:
    pieces, questions = answered(TritonCall({}, max_tokens=most), server_of(prompt, 2048, limit))
    assert questions == asked_with and [p.text for p in pieces] == ["a", "b"]


def test_what_was_asked_for_is_not_changed() -> None:
    with pytest.raises(BackendError, match="at most 137 fit"):
        answered(TritonCall({"max_tokens": 256}), server_of(1911, 2048, 0))
    with pytest.raises(BackendError, match="the engine holds 2048"):
        answered(TritonCall({}), server_of(3000, 2048, 0))


@pytest.mark.parametrize(
    ("texts", "stop", "found"),
    [
        (["Onc", "e\nUs", "er: x"], ["\nUser:"], [("Onc", ""), ("e", ""), ("", "stop")]),
        (["a\n", "b"], ["\n\n"], [("a", ""), ("\nb", "length")]),
        (["a", "b\n"], ["\n\n"], [("a", ""), ("b\n", "length")]),
    ],
)
def test_stop_is_text_across_pieces(texts: list[str], stop: list[str], found: list[tuple[str, str]]) -> None:
    rows = [{"text_output": t, "finish_reason": "", **COUNTS} for t in texts]
    rows[-1]["finish_reason"] = "length"
    answer = httpx.Response(200, content=events(*rows))
    pieces, _ = answered(TritonCall({"max_tokens": 9}, tuple(stop)), lambda _: answer)
    assert [(p.text, p.finish_reason) for p in pieces] == found


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\u0085"])
def test_characters_that_end_lines_in_python_alone_are_text(character: str) -> None:
    row = json.dumps({**LAST, "text_output": f"a{character}b"}, ensure_ascii=False)
    row = row.replace(json.dumps(character)[1:-1], character)
    [piece] = asked(lambda _: httpx.Response(200, content=f"data: {row}\n\n".encode()))
    assert piece.text == f"a{character}b"


def test_pieces() -> None:
    seen: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.path, json.loads(request.content)))
        return httpx.Response(200, content=events(FIRST, LAST))

    assert asked(answer) == [Piece("a", "", 3, 2), Piece("b", "stop", 3, 2)]
    assert seen == [("/v2/models/ensemble/generate_stream", {"max_tokens": 2, "stream": True})]


@pytest.mark.parametrize(
    ("status", "body", "found", "said"),
    [
        (400, events({"error": "in ensemble 'ensemble', seed: no"}), 400, "seed: no"),
        (400, b'{"error": "seed: no"}', 400, "seed: no"),
        (400, b'{"error": "2 requests are running or waiting already; try again later"}', 503, "already"),
        (400, b'{"error": "RuntimeError: odd (the server failed)"}', 502, "odd"),
        (400, b'{"error": "Stub process \'ensemble_0_0\' is not healthy."}', 502, "not healthy"),
        (404, b'{"error": "unknown model"}', 502, "does not know the model"),
        (500, b'{"error": "stub"}', 502, "stub"),
        (503, b'{"error": "full"}', 503, "full"),
        (429, b"slow down", 429, "slow down"),
        (302, b"", 502, "no reason given"),
        (200, b"", 502, "broke the answer off"),
        (200, events(FIRST), 502, "broke the answer off"),
        (200, events(FIRST, {"error": "in ensemble 'x', gone"}), 502, "gone"),
        (200, events({"text_output": "a"}), 502, "kind reference"),
        (200, events(3), 502, "invalid response"),
        (200, events({**FIRST, "prompt_tokens": "x"}), 502, "invalid response"),
        (200, b"data: {\n\n", 502, "invalid response"),
    ],
)
def test_failures(status: int, body: bytes, found: int, said: str) -> None:
    with pytest.raises(BackendError) as failed:
        asked(lambda _: httpx.Response(status, content=body))
    assert failed.value.status == found and said in failed.value.message


def test_errors_of_triton_itself_are_not_the_requests() -> None:
    library = environment("tritonserver") / "backends/python/libtriton_python.so"
    texts = re.findall(
        rb"(?:Failed to |Stub process|Fail to |Unable to )[\x20-\x7e]{6,}\x00", library.read_bytes()
    )
    assert len(texts) > 30
    for text in texts:
        body = json.dumps({"error": text[:-1].decode()}).encode()
        with pytest.raises(BackendError) as failed:
            asked(lambda _, body=body: httpx.Response(400, content=body))  # type: ignore[misc]
        assert failed.value.status == 502, text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (httpx.ConnectError("x"), 503),
        (httpx.ConnectTimeout("x"), 503),
        (httpx.ReadTimeout("x"), 504),
        (httpx.ReadError("x"), 502),
        (httpx.RemoteProtocolError("x"), 502),
    ],
)
def test_failures_of_the_connection(error: Exception, status: int) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        raise error

    with pytest.raises(BackendError) as failed:
        asked(answer)
    assert failed.value.status == status and "h:1" not in failed.value.message


@given(st.binary(max_size=200), st.integers(200, 599))
def test_any_answer_is_pieces_or_one_error(body: bytes, status: int) -> None:
    for raw in (body, b"data: " + body + b"\n\n"):
        try:
            asked(lambda _, raw=raw: httpx.Response(status, content=raw))
        except BackendError as e:
            assert e.status >= 400
