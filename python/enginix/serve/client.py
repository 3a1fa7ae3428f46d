"""Triton's generate extension over HTTP: one answer, or a stream of pieces."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

from enginix.errors import MachineError

# Names of Triton's protocol extension "generate" (docs/protocol/extension_generate.md of its server).
GENERATE = "/v2/models/{model}/generate"
STREAM = "/v2/models/{model}/generate_stream"


class TritonClient:
    """A client of one server.

    Args:
        timeout: longest time between two bytes, in seconds.
    """

    def __init__(self, host: str, port: int, timeout: float = 60.0) -> None:
        self._address = (host, port)
        self._timeout = timeout

    @property
    def url(self) -> str:
        """``http://host:port``."""
        host, port = self._address
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def ready(self) -> bool:
        """Tell whether all models are loaded, which does not mean that they can answer."""
        return self._is_ok("/v2/health/ready", self._timeout)

    def live(self) -> bool:
        """Tell whether the server answers within some seconds."""
        return self._is_ok("/v2/health/live", min(5.0, self._timeout))

    def _is_ok(self, path: str, timeout: float) -> bool:
        connection = http.client.HTTPConnection(*self._address, timeout=timeout)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def generate(self, model: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return one answer.

        Raises:
            MachineError: the server refuses or fails; has the server's message.
        """
        response = self._post(GENERATE.format(model=model), body)
        return self._parse_response(response.status, response.read())

    def stream(self, model: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the pieces of an answer as they come (server-sent events).

        Raises:
            MachineError: the server refuses or fails, or the stream breaks off.
        """
        response = self._post(STREAM.format(model=model), body)
        if response.status != 200:
            self._parse_response(response.status, response.read())
        empty = True
        try:
            for raw in response:
                line = raw.strip()
                if line.startswith(b"data:"):
                    empty = False
                    yield self._parse_response(200, line[5:])
        except (OSError, http.client.HTTPException) as e:
            raise MachineError(f"the stream broke off: {e or type(e).__name__}", where=self.url) from e
        if empty:
            # Triton 2.51 sends status 200 and an empty stream if a required input is missing.
            raise MachineError(
                "the stream is empty: an input is missing, or the server is stopping", where=self.url
            )

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self._address, timeout=self._timeout)

    def _post(self, path: str, body: dict[str, Any]) -> http.client.HTTPResponse:
        try:
            connection = self._connection()
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as e:
            raise MachineError(f"no answer: {e or type(e).__name__}", where=self.url) from e

    def _parse_response(self, status: int, text: bytes) -> dict[str, Any]:
        # Triton answers 200 with an error inside when a response fails after the status was sent.
        try:
            answer = json.loads(text)
        except ValueError as e:
            raise MachineError(f"not JSON: {text[:200]!r}", where=self.url) from e
        if status != 200 or not isinstance(answer, dict) or "error" in answer:
            message = answer.get("error", answer) if isinstance(answer, dict) else answer
            raise MachineError(f"refused ({status}): {message}", where=self.url)
        return answer
