"""A gateway and the servers behind it, as processes that can be counted, asked and killed."""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from setting import PACKAGE, Served, Setting

from enginix.ports import reserve_ports
from enginix.serve.client import TritonClient
from environments import environment

KEYS = {"operator": "sk-operator-" + "0" * 20, "alice": "sk-alice-" + "1" * 20}
BODY_SECONDS = 15


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
