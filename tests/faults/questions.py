"""Requests to a running server, as clients send them."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

from setting import Served

from enginix.serve.client import TritonClient

PROMPT = "Permission is hereby granted"


def whole(client: TritonClient, prompt: str = PROMPT, tokens: int = 24) -> str:
    return str(
        client.generate("ensemble", {"text_input": prompt, "max_tokens": tokens, "end_id": -1})["text_output"]
    )


def streamed(client: TritonClient, prompt: str = PROMPT, tokens: int = 24) -> str:
    body = {"text_input": prompt, "max_tokens": tokens, "end_id": -1, "stream": True}
    return "".join(str(p["text_output"]) for p in client.stream("ensemble", body))


def raw(served: Served, body: bytes, timeout: float = 60) -> int:
    """Status of a request with this body."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", int(served.client.url.rsplit(":", 1)[1]), timeout=timeout
    )
    connection.request("POST", "/v2/models/ensemble/generate", body)
    return connection.getresponse().status


def posted(served: Served, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """Status and body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", int(served.client.url.rsplit(":", 1)[1]), timeout=60)
    connection.request("POST", path, json.dumps(body), headers or {})
    response = connection.getresponse()
    return response.status, response.read()


def ask(served: Served, tokens: int, *, stream: bool) -> socket.socket:
    """Asks, and leaves the answer unread."""
    port = int(served.client.url.rsplit(":", 1)[1])
    connection = socket.create_connection(("127.0.0.1", port))
    body = json.dumps({"text_input": PROMPT, "max_tokens": tokens, "end_id": -1, "stream": stream})
    path = "/v2/models/ensemble/" + ("generate_stream" if stream else "generate")
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall((head + body).encode())
    return connection


def vanish(connection: socket.socket) -> None:
    """Resets the connection: SO_LINGER 0 sends the peer no end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.close()
