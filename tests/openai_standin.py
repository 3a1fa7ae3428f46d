"""A stand-in for the servers behind a gateway: Triton's generate extension, and OpenAI's interface."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class StandIn(ThreadingHTTPServer):
    """Answers as Triton's generate extension and as an OpenAI server do; keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, dict[str, Any], str]] = []
        self.connections = 0
        # How each next request fails, and how all others do: "refuse", "break", "break-after-headers".
        self.failures: list[str] = []
        self.failure = ""
        # Tokens that a Triton model holds, of which the prompt has 5; 0 holds any number.
        self.holds = 0
        # Seconds before the first event of a stream of Triton's, and between two; the times of each stream.
        self.pauses = (0.0, 0.0)
        self.paced: list[list[float]] = []
        self.pieces: list[str] = ["a", "b"]
        self.message: dict[str, Any] = {"role": "assistant", "content": "hi"}
        self.deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, {"content": "hi"}]
        # Rows of a stream of OpenAI's interface, and a whole answer, as they are; and the error that it
        # answers, with its status.
        self.rows: list[Any] | None = None
        self.whole: dict[str, Any] | None = None
        self.is_compressed = False
        # The address that requests of OpenAI's interface are redirected to.
        self.redirect = ""
        self.error: tuple[int, dict[str, Any]] | None = None
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandIn

    has_asked = False

    def log_message(self, *_: Any) -> None:
        pass

    def _send_events(self, rows: Sequence[Any]) -> None:
        texts = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows]
        self._send(b"".join(b"data: " + t.encode() + b"\n\n" for t in texts), "text/event-stream")

    def _send_paced(self, rows: Sequence[Any]) -> None:
        begin = time.monotonic()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        times = []
        for number, row in enumerate(rows):
            time.sleep(self.server.pauses[min(number, 1)])
            times.append(time.monotonic() - begin)
            self.wfile.write(b"data: " + json.dumps(row).encode() + b"\n\n")
        self.server.paced.append(times)
        self.close_connection = True

    def _send(self, body: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if self.server.is_compressed:
            body = gzip.compress(body)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        status = 503 if self.server.failure else 200
        self._send(b'{"data": [{"id": "mine"}]}', "application/json", status)

    def do_POST(self) -> None:
        # Checks of health come in between, on connections of their own.
        self.server.connections += not self.has_asked
        self.has_asked = True
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body, self.headers.get("Authorization", "")))
        failure = self.server.failures.pop(0) if self.server.failures else self.server.failure
        if failure == "refuse":
            self._send(b'{"error": "busy; try again later"}', "application/json", 503)
        elif failure in ("break", "break-after-headers"):
            if failure == "break-after-headers":
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Content-Length", "1000")
                self.end_headers()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif self.path.startswith("/v2/") and 0 < self.server.holds < 5 + body["max_tokens"]:
            holds = self.server.holds
            said = f"max_tokens: 5 prompt tokens + {body['max_tokens']} are above the engine's {holds}; "
            self._send(
                json.dumps({"error": f"{said}at most {holds - 5} fit"}).encode(), "application/json", 400
            )
        elif self.path.startswith("/v2/") and any(self.server.pauses):
            self._send_paced(triton_events(self.server.pieces))
        elif self.path.startswith("/v2/"):
            self._send_events(triton_events(self.server.pieces))
        elif self.server.redirect:
            self.send_response(307)
            self.send_header("Location", self.server.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.server.error is not None:
            status, error = self.server.error
            self._send(json.dumps({"error": error}).encode(), "application/json", status)
        elif body.get("stream") and self.server.rows is not None:
            self._send_events(self.server.rows)
        elif body.get("stream"):
            usage = bool((body.get("stream_options") or {}).get("include_usage"))
            self._send_events([*openai_chunks(self.path, self.server.deltas, usage=usage), "[DONE]"])
        else:
            answer = self.server.whole or openai_answer(self.path, self.server.message)
            self._send(json.dumps(answer).encode(), "application/json")


def triton_events(pieces: Sequence[str]) -> list[Any]:
    """What Triton's generate extension streams; JSON is as Triton writes it, characters raw."""
    found = []
    for number, piece in enumerate(pieces, 1):
        finish = "stop" if number == len(pieces) else ""
        counts = {"prompt_tokens": 5, "completion_tokens": number}
        found.append({"text_output": piece, "finish_reason": finish, **counts})
    return found


def openai_answer(path: str, message: dict[str, Any]) -> dict[str, Any]:
    """A whole answer of OpenAI's interface."""
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    found = {"id": "x", "created": 1, "model": "x", "usage": usage}
    if path.endswith("/chat/completions"):
        finish = "tool_calls" if message.get("tool_calls") else "stop"
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return {**found, "object": "chat.completion", "choices": [choice]}
    choice = {"index": 0, "text": message["content"], "finish_reason": "stop", "logprobs": None}
    return {**found, "object": "text_completion", "choices": [choice]}


def openai_chunks(path: str, deltas: Sequence[dict[str, Any]], *, usage: bool) -> list[Any]:
    """The chunks of a stream of OpenAI's interface."""
    chat = path.endswith("/chat/completions")
    finish = "tool_calls" if any(d.get("tool_calls") for d in deltas) else "stop"
    base = {"id": "x", "object": "chat.completion.chunk" if chat else "text_completion", "created": 1}
    base["model"] = "x"
    rows: list[Any] = []
    for delta in deltas if chat else [d for d in deltas if d.get("content")]:
        content = {"delta": delta} if chat else {"text": delta["content"]}
        rows.append({**base, "choices": [{"index": 0, **content, "finish_reason": None}]})
    last = {"delta": {}} if chat else {"text": ""}
    rows.append({**base, "choices": [{"index": 0, **last, "finish_reason": finish}]})
    if usage:
        counts = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        rows.append({**base, "choices": [], "usage": counts})
    return rows
