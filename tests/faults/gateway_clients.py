"""Clients of a gateway: OpenAI's own, and others that leave, wait, send noise or damaged bodies."""

from __future__ import annotations

import json
import random
import re
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from gateway_processes import KEYS, Gateway, ask

from environments import environment

PROMPT = "Permission is hereby granted"
QUESTIONS = [(f"{PROMPT} {word}", tokens) for word in ("copy", "work", "court") for tokens in (4, 64, 200)]
# The outcomes that each kind of client may have.
ALLOWED = {
    "stream": {"answered", "broken off after a piece"},
    "whole": {"answered"},
    "leave": {"left", "broken off after a piece"},
    "slow reader": {"answered", "broken off after a piece"},
    "slow sender": {"answered"},
    "half a body": {"408"},
    "idle": {"closed"},
    "noise": {"400", "closed"},
    "damaged": {"400"},
    "random parameters": {"200", "400"},
    "wrong key": {"401"},
    "limited": {"200", "429"},
    "address": {"400", "404", "405"},
}
# How a stream ends whose server is killed: by the gateway where the connection ended, by ensemble where the
# executor has.
BROKEN_OFF = ("broke the answer off", "is not reached any more")


class Wrong(Exception):
    """An outcome that must not be."""


def compose(prompt: str, tokens: int, **more: Any) -> dict[str, Any]:
    """Return a completion's body."""
    return {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, **more}


class Clients:
    """What clients do, each once; a method returns the outcome.

    Args:
        expected: the text of each question.
    """

    def __init__(self, gateway: Gateway, expected: dict[tuple[str, int], str]) -> None:
        [site] = (environment("gateway") / "lib").glob("python3.*/site-packages")
        if str(site) not in sys.path:
            sys.path.append(str(site))
        import openai

        self._openai = openai
        self._client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{gateway.port}/v1",
            api_key=KEYS["operator"],
            max_retries=0,
            timeout=200,
        )
        self._gateway, self._expected = gateway, expected

    def kinds(self) -> dict[str, Callable[[random.Random], str]]:
        """Return the methods by the names of ALLOWED."""
        return {name: getattr(self, f"_{name.replace(' ', '_')}") for name in ALLOWED}

    def _create(self, question: tuple[str, int], **more: Any) -> Any:
        prompt, tokens = question
        return self._client.completions.create(
            model="tiny", prompt=prompt, max_tokens=tokens, extra_body={"ignore_eos": True}, **more
        )

    def _stream(self, chance: random.Random) -> str:
        question = chance.choice(QUESTIONS)
        text = ""
        try:
            for chunk in self._create(question, stream=True):
                text += chunk.choices[0].text
        except self._openai.APIStatusError as e:
            raise Wrong(f"{e.status_code}: {e}") from e
        except self._openai.APIError as e:
            return self._judge_broken(question, text, str(e))
        return self._judge_whole(question, text)

    def _whole(self, chance: random.Random) -> str:
        question = chance.choice(QUESTIONS)
        return self._judge_whole(question, self._create(question).choices[0].text)

    def _judge_whole(self, question: tuple[str, int], text: str) -> str:
        if text != self._expected[question]:
            raise Wrong(f"{question}: {text!r}, expected {self._expected[question]!r}")
        return "answered"

    def _judge_broken(self, question: tuple[str, int], text: str, error: str) -> str:
        is_known = any(reason in error for reason in BROKEN_OFF)
        if not text or not self._expected[question].startswith(text) or not is_known:
            raise Wrong(f"{question}: broken off after {text!r}: {error}")
        return "broken off after a piece"

    def _leave(self, chance: random.Random) -> str:
        stream = self._create((PROMPT, 1500), stream=True)
        pieces, wanted = 0, chance.randrange(1, 20)
        try:
            for _ in stream:
                pieces += 1
                if pieces == wanted:
                    break
        except self._openai.APIError as e:
            # Its server may be killed before the client leaves.
            if not pieces or not any(reason in str(e) for reason in BROKEN_OFF):
                raise
            return "broken off after a piece"
        stream.close()
        return "left"

    def _connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._gateway.port), timeout=200)

    def _head(self, size: int) -> bytes:
        return (
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            f"Authorization: Bearer {KEYS['operator']}\r\nContent-Length: {size}\r\n\r\n"
        ).encode()

    def _slow_reader(self, chance: random.Random) -> str:
        question = chance.choice(QUESTIONS)
        body = json.dumps(compose(*question, stream=True)).encode()
        with self._connect() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(self._head(len(body)) + body)
            raw = b""
            while piece := connection.recv(512):
                raw += piece
                time.sleep(0.01)
        if not raw.startswith(b"HTTP/1.1 200 "):
            raise Wrong(raw[:300].decode())
        events = [json.loads(t) for t in re.findall(rb"^data: (\{.*\})\r?$", raw, re.M)]
        text = "".join(c["text"] for e in events for c in e.get("choices", ()))
        errors = [e["error"]["message"] for e in events if "error" in e]
        if errors:
            return self._judge_broken(question, text, errors[0])
        if b"data: [DONE]" not in raw:
            raise Wrong(f"a stream without an end: {raw[-200:]!r}")
        return self._judge_whole(question, text)

    def _slow_sender(self, chance: random.Random) -> str:
        question = chance.choice(QUESTIONS)
        body = json.dumps(compose(*question)).encode()
        with self._connect() as connection:
            connection.sendall(self._head(len(body)))
            for position in range(0, len(body), 5):
                connection.sendall(body[position : position + 5])
                time.sleep(0.1)
            raw = b"".join(iter(lambda: connection.recv(65536), b""))
        found = json.loads(raw[raw.index(b'{"') : raw.rindex(b"}") + 1])
        if "choices" not in found:
            raise Wrong(str(found))
        return self._judge_whole(question, found["choices"][0]["text"])

    def _half_a_body(self, _: random.Random) -> str:
        with self._connect() as connection:
            connection.sendall(self._head(100) + b'{"model"')
            return connection.recv(65536).split()[1].decode()

    def _idle(self, chance: random.Random) -> str:
        with self._connect() as connection:
            connection.sendall(self._head(100)[: chance.randrange(60)])
            while connection.recv(65536):
                pass
        return "closed"

    def _noise(self, chance: random.Random) -> str:
        with self._connect() as connection:
            connection.sendall(bytes([0]) + chance.randbytes(chance.randrange(200)) + b"\r\n\r\n")
            raw = connection.recv(65536)
        return raw.split()[1].decode() if raw else "closed"

    def _send(self, body: bytes, path: str = "/v1/completions", key: str = KEYS["operator"]) -> str:
        status, text, response = ask(self._gateway, "POST", path, body, key)
        if status >= 400 and not isinstance(json.loads(text)["error"]["message"], str):
            raise Wrong(f"not OpenAI's form: {text[:200]!r}")
        if status == 429 and int(response.headers["retry-after"]) < 1:
            raise Wrong(f"Retry-After: {response.headers['retry-after']}")
        return str(status)

    def _damaged(self, chance: random.Random) -> str:
        body = json.dumps(compose(PROMPT, 2)).encode()
        position = chance.randrange(len(body) - 1)
        return self._send(
            chance.choice(
                (
                    body[:position],
                    body[:position] + b"\0" + body[position:],
                    body.replace(b"2,", b"1e400,"),
                    body.replace(b"Permission", b"\\ud800"),
                    b"[" * chance.randrange(1, 100_000),
                    chance.randbytes(position),
                )
            )
        )

    def _random_parameters(self, chance: random.Random) -> str:
        names = ("temperature", "top_p", "top_k", "seed", "stop", "n", "min_tokens", "logit_bias", "user")
        values = (None, 0, 1, -1, 0.5, "x", [], ["a"], {}, True, 2**63, 10**30, [[1]], {"a": {"b": 1}})
        more = {name: chance.choice(values) for name in chance.sample(names, chance.randrange(1, 4))}
        path = chance.choice(("/v1/completions", "/v1/chat/completions"))
        body: dict[str, Any] = compose(PROMPT, chance.choice((1, 2, 16)), stream=chance.random() < 0.5)
        if path.endswith("chat/completions"):
            body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
        return self._send(json.dumps({**body, **more}).encode(), path)

    def _wrong_key(self, chance: random.Random) -> str:
        return self._send(json.dumps(compose(PROMPT, 2)).encode(), key=str(chance.random()))

    def _limited(self, _: random.Random) -> str:
        return self._send(json.dumps(compose(PROMPT, 2)).encode(), key=KEYS["alice"])

    def _address(self, chance: random.Random) -> str:
        paths = (
            "/v1/completions?model=x",
            "/",
            "/v1/../health",
            "/v1/models/x",
            "/key/generate",
            "//metrics",
        )
        return self._send(b"{}", chance.choice(paths))
