"""Wait for the first answer of an OpenAI server."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from enginix.console import Heartbeat
from enginix.errors import EndpointError, MachineError, UsageError

# A server that is loading answers with one of these, or does not listen yet.
_LOADING = (404, 429, 500, 502, 503, 504)


class _NotReady(Exception):
    """No answer yet, and why."""


def await_answer(url: str, timeout: float, model: str | None = None, key: str | None = None) -> float:
    """Wait for a generated token; return the seconds that it took.

    Args:
        url: ``http://host:port``.
        timeout: seconds.
        model: name of the model to ask; None for the first that the server lists.

    Raises:
        EndpointError: no answer in time, with the last reason, or refused for good (a wrong key).
    """
    host, port = _parse_http_address(url)
    return _wait_until_answered(url, timeout, lambda left: _ask_once(host, port, model, key, left))


def await_triton(url: str, timeout: float, kind: str) -> float:
    """Wait until Triton answers for a repository of this kind; return the seconds that it took."""
    from enginix.serve.client import TritonClient
    from enginix.serve.readiness import make_probe

    host, port = _parse_http_address(url)

    def ask(left: float) -> None:
        client = TritonClient(host, port, left)
        if not client.ready():
            raise _NotReady("/v2/health/ready reports not ready")
        try:
            client.generate(*make_probe(kind))
        except MachineError as e:
            raise _NotReady(e.what) from e

    return _wait_until_answered(url, timeout, ask)


def _parse_http_address(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        scheme, host, port = "", None, None
    if scheme != "http" or host is None or port is None:
        raise UsageError(f"{url!r} is not http://host:port", where="URL")
    return host, port


def _wait_until_answered(url: str, timeout: float, ask: Callable[[float], None]) -> float:
    started = time.monotonic()
    heartbeat = Heartbeat(30)
    while True:
        left = timeout - (time.monotonic() - started)
        try:
            ask(max(left, 1.0))
            return time.monotonic() - started
        except _NotReady as e:
            waited = time.monotonic() - started
            if waited > timeout:
                raise EndpointError(
                    f"no answer after {waited:.0f} s: {e}", where=url, fix="start it, or raise --timeout"
                ) from e
            heartbeat.beat(f"{url}: no answer since {waited:.0f} s")
            time.sleep(min(0.2, max(left, 0.01)))


def _ask_once(host: str, port: int, model: str | None, key: str | None, timeout: float) -> None:
    def call(method: str, path: str, body: Any = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as e:
            raise _NotReady(str(e) or type(e).__name__) from e
        finally:
            connection.close()
        if response.status in _LOADING:
            raise _NotReady(f"{path}: {response.status} {text[:200]!r}")
        if response.status != 200:
            raise EndpointError(
                f"refused ({response.status}): {text[:200]!r}",
                where=path,
                fix="pass the server's key" if response.status in (401, 403) else None,
            )
        try:
            return json.loads(text)
        except ValueError as e:
            raise EndpointError(f"not JSON: {text[:200]!r}", where=path) from e

    if model is None:
        try:
            model = call("GET", "/v1/models")["data"][0]["id"]
        except (KeyError, IndexError, TypeError) as e:
            raise _NotReady("/v1/models lists no model") from e
    question = {"model": model, "messages": [{"role": "user", "content": "A"}], "max_tokens": 1}
    answer = call("POST", "/v1/chat/completions", question)
    if not (isinstance(answer, dict) and answer.get("choices")):
        raise EndpointError(f"an answer without choices: {str(answer)[:200]}", where="/v1/chat/completions")
