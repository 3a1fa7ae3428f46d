"""An asynchronous client of Triton's generate extension: answers in pieces, over kept connections.

It always uses the streaming endpoint: Triton cancels a streaming request when its connection closes, and
computes every other answer to its end (docs/reference/triton.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import httpx

from enginix.gateway.call import TritonCall
from enginix.gateway.events import EventParser, EventTooLarge
from enginix.gateway.stop_text import StopText
from enginix.tables import load_table

# A connection takes milliseconds. Where many requests come at once, this process may need seconds to
# notice that it has one.
CONNECT_SECONDS = 15.0
_MOST_TOKENS = 2**31 - 1
# How refusals of a length end (enginix.triton.models.generation.check_lengths).
_FITS = re.compile(r"(?:at most|above this server's limit of) (\d+)(?: fit)?$")


class BackendError(Exception):
    """The server refused or failed.

    Args:
        status: HTTP status for the client: 400 if the request is at fault, 5xx otherwise.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.message, self.status = message, status


@dataclass(frozen=True)
class Piece:
    """A piece of an answer; counts include all pieces so far.

    Attributes:
        finish_reason: ``stop`` or ``length`` with the last piece, else empty.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


def new_client(seconds: float) -> httpx.AsyncClient:
    """Return a client with kept, unlimited connections; it ignores the environment's proxies.

    Args:
        seconds: longest time without data from a computing server.
    """
    return httpx.AsyncClient(
        timeout=httpx.Timeout(seconds, connect=CONNECT_SECONDS, pool=None),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        trust_env=False,
        follow_redirects=False,
    )


async def stream_pieces(
    client: httpx.AsyncClient, url: str, model: str, question: Mapping[str, Any]
) -> AsyncGenerator[Piece, None]:
    """Send a request and yield the pieces as they come; closing the iterator closes the connection.

    Raises:
        BackendError: the server refused, failed, was silent for too long, or broke off before the last piece.
    """
    target = f"{url.rstrip('/')}/v2/models/{model}/generate_stream"
    finished = False
    try:
        async with client.stream("POST", target, json={**question, "stream": True}) as response:
            if response.status_code != 200:
                raise _parse_backend_error(response.status_code, await response.aread())
            async for data in _read_events(response):
                piece = _parse_piece(data)
                finished = bool(piece.finish_reason)
                yield piece
    except (httpx.ConnectError, httpx.ConnectTimeout) as e:
        raise BackendError("the model's server cannot be reached", 503) from e
    except httpx.TimeoutException as e:
        raise BackendError("the model's server is silent for too long", 504) from e
    except httpx.HTTPError as e:
        raise BackendError(f"the model's server broke the answer off ({type(e).__name__})", 502) from e
    if not finished:
        # Triton 2.51 ends a stream like a complete one when the model's process has died.
        raise BackendError("the model's server broke the answer off", 502)


async def _read_events(response: httpx.Response) -> AsyncIterator[str]:
    """Yield the data of the server-sent events."""
    parser = EventParser()
    try:
        async for raw in response.aiter_bytes():
            for data in parser.feed(raw):
                yield data
        for data in parser.close():
            yield data
    except EventTooLarge as e:
        raise BackendError("the model's server sent an event that is too large", 502) from e


async def stream_answer(
    client: httpx.AsyncClient, url: str, model: str, call: TritonCall
) -> AsyncGenerator[Piece, None]:
    """Answer a request by OpenAI's rules: up to its stop texts, with as many tokens as fit.

    Raises:
        BackendError: as :func:`stream_pieces`.
    """
    stop = StopText(call.stop)
    async with aclosing(_stream_fitting(client, url, model, call)) as pieces:
        async for piece in pieces:
            call.see_piece(piece.prompt_tokens, piece.completion_tokens)
            text, stopped = stop.push(piece.text)
            if stopped:
                # Closing the connection ends the request at the server.
                yield replace(piece, text=text, finish_reason="stop")
                return
            if piece.finish_reason:
                text += stop.flush()
            if text or piece.finish_reason:
                yield replace(piece, text=text)


async def _stream_fitting(
    client: httpx.AsyncClient, url: str, model: str, call: TritonCall
) -> AsyncGenerator[Piece, None]:
    """Ask for as many tokens as fit, if the request sets no limit; a refusal names the number that fits."""
    if "max_tokens" in call.question:
        async with aclosing(stream_pieces(client, url, model, call.question)) as pieces:
            async for piece in pieces:
                yield piece
        return
    max_tokens = call.max_tokens or _MOST_TOKENS
    # Two limits can refuse in turn, the server's own and the engine's; the third attempt succeeds.
    for last in (False, False, True):
        try:
            async with aclosing(
                stream_pieces(client, url, model, {**call.question, "max_tokens": max_tokens})
            ) as pieces:
                async for piece in pieces:
                    yield piece
                return
        except BackendError as e:
            fits = _FITS.search(e.message)
            if last or e.status != 400 or fits is None or not 0 < int(fits[1]) < max_tokens:
                raise
            max_tokens = int(fits[1])


def _parse_piece(data: str) -> Piece:
    try:
        event = json.loads(data)
        if "error" in event:
            # After the first piece: the request was accepted, so the server failed.
            raise BackendError(_strip_ensemble_name(str(event["error"])), 502)
        if "finish_reason" not in event:
            raise BackendError(
                "the model's server does not name the reason why an answer ends; not of kind reference", 502
            )
        return Piece(
            str(event["text_output"]),
            str(event["finish_reason"]),
            int(event["prompt_tokens"]),
            int(event["completion_tokens"]),
        )
    except (ValueError, KeyError, TypeError) as e:
        raise BackendError("the model's server sent an invalid response", 502) from e


def _parse_backend_error(status: int, body: bytes) -> BackendError:
    text = body.decode("utf-8", "replace").strip().removeprefix("data:").strip()
    try:
        message = str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        message = text[:200] or "no reason given"
    ends = load_table("triton_errors")
    if message.endswith(ends["later"]):
        return BackendError(_strip_ensemble_name(message), 503)
    is_of_triton = re.match(ends["of_triton"], _strip_ensemble_name(message), re.IGNORECASE)
    if is_of_triton or message.endswith(f"({ends['failed']})"):
        return BackendError(_strip_ensemble_name(message), 502)
    if status in (401, 403, 404):
        # The client is not at fault: the gateway's configuration names the model.
        return BackendError(
            f"the model's server does not know the model: {_strip_ensemble_name(message)}", 502
        )
    return BackendError(_strip_ensemble_name(message), status if status in (400, 429, 503) else 502)


def _strip_ensemble_name(message: str) -> str:
    """Remove the name of the ensemble from an error; the client does not know it.

    Triton's own ensembles put it before an error; repositories of earlier versions have one.
    """
    head, separator, remainder = message.partition("', ")
    return remainder if separator and head.startswith("in ensemble") else message
