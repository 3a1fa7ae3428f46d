"""The gateway before two servers: mixed load, faults and fuzzing; every answer is accounted for.

    python tests/faults/gateway_load.py [--minutes 15] [--seed 1]

OpenAI's own client streams and asks; others leave, send and read slowly, send noise, damaged and random
bodies, wrong keys, and more than their limit. Each minute a process of one of the two servers is killed or
told to end, and the server started again, as systemd does. Then:

- Each request that was sent has one outcome, and that outcome is one that its kind may have: an answer is
  the text that the question gets alone; a stream is that text, or a beginning of it and an error.
- The gateway's log has one line, and its metrics one count, for each of them.
- Its memory and open files are what they were after the first third.

The Python that runs it needs the development environment, and python/ of this repository in PYTHONPATH.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setting import PACKAGE, Served, Setting

from enginix.ports import reserve_ports
from enginix.serve.client import TritonClient
from environments import environment

KEYS = {"operator": "sk-operator-" + "0" * 20, "alice": "sk-alice-" + "1" * 20}
PROMPT = "Permission is hereby granted"
QUESTIONS = [(f"{PROMPT} {word}", tokens) for word in ("copy", "work", "court") for tokens in (4, 64, 200)]
BODY_SECONDS = 15
# What may happen to the two servers, each minute one of it.
FAULTS = ("executor", "ensemble", "tritonserver", "command", "SIGTERM")
# Growth that LiteLLM's caches and the allocator may have.
MEMORY_GROWTH = 1.15

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
# Requests that never become one: the gateway writes no line about them.
UNLOGGED = ("idle", "noise")


class Wrong(Exception):
    """An outcome that must not be."""


class RestartedServer:
    """`enginix serve` on a port of its own, started again whenever it ends."""

    def __init__(self, setting: Setting, port: int) -> None:
        self._setting, self.port = setting, port
        self.statuses: collections.Counter[int] = collections.Counter()
        self._stopped = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._keep)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._stopped.set()
        if self._process is not None:
            self._process.terminate()
        self._thread.join()

    def fail(self, fault: str) -> None:
        """Do to it what FAULTS names."""
        assert self._process is not None
        served = Served(self._process, TritonClient("127.0.0.1", self.port), 0, 0)
        if fault == "SIGTERM":
            self._process.terminate()
        elif fault == "command":
            self._process.kill()
        elif fault == "tritonserver":
            os.kill(served.child("bin/tritonserver"), signal.SIGKILL)
        else:
            os.kill(served.model("tensorrt_llm" if fault == "executor" else fault), signal.SIGKILL)

    def _keep(self) -> None:
        words = self._setting.words("--exit-timeout", "20", "--no-grpc", "--no-metrics")
        words[words.index("--http-port") + 1] = str(self.port)
        for name in ("--grpc-port", "--metrics-port"):
            del words[words.index(name) : words.index(name) + 2]
        while not self._stopped.is_set():
            self._process = subprocess.Popen(
                words,
                env=self._setting.environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self.statuses[self._process.wait()] += 1
            # RestartSec of the unit is longer.
            self._stopped.wait(1)


@dataclass
class Gateway:
    """A running `enginix gateway`."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def answering(self) -> int:
        """Servers that answered when last asked."""
        text = ask(self, "GET", "/health/ready")[1]
        return int(json.loads(text)["models"]["tiny"]["answering"])

    def counted(self) -> int:
        """Requests that its metrics have counted."""
        page = ask(self, "GET", "/metrics")[1].decode()
        return sum(int(n) for n in re.findall(r"^enginix_gateway_requests_total\{.*\} (\d+)$", page, re.M))

    def logged(self) -> int:
        """Requests that its log has a line of."""
        return len(
            re.findall(r"^[A-Za-z]+ /\S* \d{3} \S+ \S+ \d+ ms [0-9a-f]{32}", self.log.read_text(), re.M)
        )

    def memory(self) -> int:
        """Bytes of its own pages."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"^RssAnon:\s+(\d+) kB", text, re.M)[0]) * 1024

    def files(self) -> int:
        """Open files."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@contextlib.contextmanager
def start_gateway(directory: Path, urls: list[str]) -> Iterator[Gateway]:
    """Start a gateway before servers."""
    for name, key in KEYS.items():
        (directory / name).write_text(key)
        (directory / name).chmod(0o600)
    description = {
        "version": 1,
        "name": "gateway",
        "models": {"tiny": [{"kind": "triton", "url": url, "model": "ensemble"} for url in urls]},
        "keyFile": str(directory / "operator"),
        "clients": {"alice": {"keyFile": str(directory / "alice"), "requestsPerMinute": 6}},
        "limits": {"bodySeconds": BODY_SECONDS, "silenceSeconds": 120},
    }
    (directory / "gateway.json").write_text(json.dumps(description))
    [port] = reserve_ports("127.0.0.1", [("gateway", 0)])
    python = environment("gateway") / "bin" / "python3"
    words = [sys.executable, "-m", "enginix", "gateway", str(directory / "gateway.json")]
    log = directory / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*words, "--python", str(python), "--port", str(port), "--exit-timeout", "30"],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PACKAGE)},
            stdout=out,
            stderr=out,
        )
    gateway = Gateway(process, int(port), log)
    deadline = time.monotonic() + 300
    while " answers at http" not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    try:
        yield gateway
    finally:
        process.terminate()
        process.wait(120)


def ask(
    gateway: Gateway, method: str, path: str, body: bytes | None = None, key: str = KEYS["operator"]
) -> tuple[int, bytes, http.client.HTTPResponse]:
    """Return the status, the body and the answer itself."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=200)
    try:
        connection.request(method, path, body, {"Authorization": f"Bearer {key}"})
        response = connection.getresponse()
        return response.status, response.read(), response
    finally:
        connection.close()


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


class GatewayLoad:
    """Clients of one gateway, a thread each; ``outcomes`` counts, ``wrong`` says what must not be."""

    def __init__(self, clients: Clients, seed: int) -> None:
        self.sent: collections.Counter[str] = collections.Counter()
        self.outcomes: collections.Counter[tuple[str, str]] = collections.Counter()
        self.wrong: list[str] = []
        self._stopped, self._lock = threading.Event(), threading.Lock()
        several = {"stream": 5, "whole": 2}
        kinds = [item for item in clients.kinds().items() for _ in range(several.get(item[0], 1))]
        self._threads = [
            threading.Thread(target=self._repeat, args=(name, client, random.Random(f"{seed} {number}")))
            for number, (name, client) in enumerate(kinds)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait for all that is under way.

        Raises:
            Wrong: something hangs.
        """
        self._stopped.set()
        for thread in self._threads:
            thread.join(300)
            if thread.is_alive():
                raise Wrong("a request hangs")

    def _repeat(self, name: str, client: Callable[[random.Random], str], chance: random.Random) -> None:
        while not self._stopped.is_set():
            self.sent[name] += 1
            try:
                outcome = client(chance)
            except Exception as e:
                outcome = f"{type(e).__name__}: {e}"
            with self._lock:
                self.outcomes[name, outcome[:60]] += 1
                if outcome not in ALLOWED[name]:
                    self.wrong.append(f"{time.strftime('%T')} {name}: {outcome}")
            self._stopped.wait(chance.random() / 5)


def watch_load(
    load: GatewayLoad, gateway: Gateway, servers: list[RestartedServer], seconds: float, seed: int
) -> tuple[list[int], collections.Counter[str]]:
    """Fail servers in turns until the time is over.

    Returns:
        The gateway's memory, measured each 5 s; the faults.
    """
    chance = random.Random(seed)
    memory, faults = [], collections.Counter[str]()
    begin = last = time.monotonic()
    while time.monotonic() < begin + seconds and gateway.process.poll() is None and not load.wrong:
        time.sleep(5)
        memory.append(gateway.memory())
        # One at a time, and the last minute without: a model needs a server.
        if (
            time.monotonic() > last + 45
            and time.monotonic() < begin + seconds - 60
            and gateway.answering() == 2
        ):
            fault = FAULTS[sum(faults.values()) % len(FAULTS)]
            chance.choice(servers).fail(fault)
            faults[fault] += 1
            last = time.monotonic()
    return memory, faults


def judge_load(
    load: GatewayLoad, gateway: Gateway, memory: list[int], before: tuple[int, int, int]
) -> list[str]:
    """Return what is not as it must be.

    Args:
        before: requests logged, requests counted and open files before the load.
    """
    logged, counted, files = before
    found = list(load.wrong[:5])
    expected = sum(number for name, number in load.sent.items() if name not in UNLOGGED)
    for name, number in load.sent.items():
        if sum(n for (kind, _), n in load.outcomes.items() if kind == name) != number:
            found.append(f"{name}: requests without an outcome")
    if gateway.logged() - logged != expected:
        found.append(f"{expected} requests, {gateway.logged() - logged} lines in the log")
    if gateway.counted() - counted != expected:
        found.append(f"{expected} requests, {gateway.counted() - counted} counted")
    third = max(1, len(memory) // 3)
    early, late = max(memory[:third]), max(memory[-third:])
    print(f"memory {early / 2**20:.0f} MiB in the first third, {late / 2**20:.0f} MiB in the last")
    print(f"open files {files} before, {gateway.files()} after")
    if late > early * MEMORY_GROWTH:
        found.append("memory grows")
    # Connections to the servers are kept.
    if gateway.files() > files + 70:
        found.append("files stay open")
    return found


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=15, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="enginix-load-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        setting = Setting(directory)
        ports = reserve_ports("127.0.0.1", [("first", 0), ("second", 0)])
        servers = [RestartedServer(setting, int(port)) for port in ports]
        for server in servers:
            stack.callback(server.stop)
        gateway = stack.enter_context(start_gateway(directory, [s.url for s in servers]))
        expected = {}
        for question in QUESTIONS:
            answer = ask(gateway, "POST", "/v1/completions", json.dumps(compose(*question)).encode())[1]
            expected[question] = str(json.loads(answer)["choices"][0]["text"])
        before = (gateway.logged(), gateway.counted(), gateway.files())
        load = GatewayLoad(Clients(gateway, expected), args.seed)
        memory, faults = watch_load(load, gateway, servers, args.minutes * 60, args.seed)
        load.stop()
        time.sleep(12)
        for (kind, outcome), number in sorted(load.outcomes.items()):
            print(f"{number:7} {kind}: {outcome}")
        print("faults:", dict(faults), "statuses of servers:", *(dict(s.statuses) for s in servers))
        wrong = judge_load(load, gateway, memory, before)
        ready = ask(gateway, "GET", "/health/ready")
        if ready[0] != 200:
            wrong.append(f"not ready in the end: {ready[1].decode()}")
        if wrong:
            print("\n".join(gateway.log.read_text().splitlines()[-30:]))
    if gateway.process.returncode != 0:
        wrong.append(f"the gateway ended with status {gateway.process.returncode}")
    print("\n".join(wrong) if wrong else f"all {sum(load.sent.values())} accounted for")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
