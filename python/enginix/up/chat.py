"""A client of OpenAI's interface for a terminal: standard library only, streamed."""

from __future__ import annotations

import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from enginix.errors import EndpointError, UsageError

TIMEOUT = 600.0  # seconds without a byte
_START = "start it (enginix up MODEL serves http://127.0.0.1:4000/v1), or pass the address of one that runs"
# Status → what mends it, where the status alone tells.
_FIXES = {
    401: "pass the endpoint's key: --key-file FILE",
    403: "pass a key that may use this model: --key-file FILE",
    404: "pass the address up to its /v1, such as http://127.0.0.1:4000/v1, and a model that it serves; "
    "tritonserver itself has no such interface, enginix gateway puts it in front",
}


def parse_endpoint(address: str) -> str:
    """Return the address up to its /v1: ``127.0.0.1:8000`` is ``http://127.0.0.1:8000/v1``.

    Raises:
        UsageError: no address of a server.
    """
    url = f"http://{address}" if re.fullmatch(r"[\w.-]+:\d+(/.*)?", address) else address
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise UsageError(f"{address!r} is no address", fix="pass http://127.0.0.1:4000/v1")
    return f"{url.rstrip('/')}/v1" if parts.path in ("", "/") else url.rstrip("/")


def list_models(url: str, key: str | None = None) -> list[str]:
    """Return the names of the models at an endpoint, ``http://host:port/v1``."""
    answer = _read_json(_open(f"{url}/models", None, key))
    return [str(row["id"]) for row in answer.get("data", [])]


def choose_model(url: str, named: str | None, key: str | None = None) -> str:
    """Return the named model, or the endpoint's only one.

    Raises:
        UsageError: it has several, and none is named.
    """
    if named is not None:
        return named
    models = list_models(url, key)
    if len(models) != 1:
        raise UsageError(f"{url} has {len(models)} models", fix=f"--model {' or '.join(models[:8])}")
    return models[0]


def complete_text(url: str, model: str, prompt: str, key: str | None = None) -> str:
    """Return the text after a prompt, of at most 64 tokens."""
    request = {"model": model, "prompt": prompt, "max_tokens": 64}
    answer = _read_json(_open(f"{url}/completions", request, key))
    return str(answer["choices"][0]["text"])


def stream_chat(
    url: str, model: str, messages: list[dict[str, str]], key: str | None = None, **options: Any
) -> Iterator[str]:
    """Yield the pieces of an answer to a conversation.

    Raises:
        EndpointError: it cannot be reached, refused the request, or failed in the middle.
    """
    request = {"model": model, "messages": messages, "stream": True, **options}
    for event in open_stream(f"{url}/chat/completions", request, key):
        for choice in event.get("choices", []):
            if text := choice.get("delta", {}).get("content"):
                yield text


def open_stream(url: str, request: Mapping[str, Any], key: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the events of a streamed answer.

    Raises:
        EndpointError: it cannot be reached, refused the request, or failed in the middle.
    """
    with _open(url, request, key) as response:
        for line in response:
            data = line.strip()
            if not data.startswith(b"data:"):
                continue
            payload = data[5:].strip()
            if payload == b"[DONE]":
                return
            event = json.loads(payload)
            if not isinstance(event, dict) or "error" in event:
                raise EndpointError(_read_message(event), where=url)
            yield event


def _open(url: str, body: Mapping[str, Any] | None, key: str | None) -> Any:
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(url, data, headers)
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except ValueError as e:
        raise UsageError(f"{url!r} is no address: {e}", fix="pass http://127.0.0.1:4000/v1") from e
    except urllib.error.HTTPError as e:
        text = e.read().decode("utf-8", "replace")
        try:
            message = _read_message(json.loads(text))
        except ValueError:
            message = text[:200]
        raise EndpointError(
            f"status {e.code}: {message}", where=url, fix=_FIXES.get(e.code), status=e.code
        ) from e
    except (urllib.error.URLError, http.client.HTTPException, OSError) as e:
        reason = getattr(e, "reason", e)
        raise EndpointError(f"not reached: {reason}", where=url, fix=_START) from e


def _read_json(response: Any) -> dict[str, Any]:
    with response:
        text = response.read()
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise EndpointError("the answer is no JSON object", where=response.url, fix=_FIXES[404])
    return answer


def _read_message(answer: Any) -> str:
    error = answer.get("error") if isinstance(answer, dict) else None
    return str(error.get("message") if isinstance(error, dict) else error or answer)
