"""The gateway over LiteLLM, real Triton servers behind it, and OpenAI's own client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from enginix.serve.client import TritonClient
from environments import environment
from faults.setting import Served, Setting
from openai_standin import StandIn

TESTS = Path(__file__).parents[2]
OPERATOR = "sk-operator-" + "0" * 20
ALICE = "sk-alice-" + "1" * 20
MONITOR = "sk-monitor-" + "4" * 20


@pytest.fixture(scope="module")
def standin() -> Iterator[StandIn]:
    """A stand-in of an OpenAI server that records what reaches it."""
    server = StandIn()
    yield server
    server.shutdown()


@pytest.fixture(scope="session")
def install(made_once: Callable[..., Path]) -> Callable[..., Path]:
    """Makes a virtual environment of what pip installs; returns its Python: ``install(directory, "openai")``.

    One pip installs into all of them. It compiles nothing: most modules are never imported.
    """

    def make_pip(out: Path) -> None:
        # Newer pips choose among releases in a third of the time that Debian's takes.
        subprocess.run(["/usr/bin/python3", "-m", "venv", "--upgrade-deps", out], check=True)

    def install_packages(directory: Path, *packages: str) -> Path:
        pip = made_once("pip", make_pip) / "bin/python3"
        subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", directory], check=True)
        python = directory / "bin/python3"
        words = [pip, "-m", "pip", "--python", python, "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*words, "--only-binary", ":all:", "--no-compile", *packages], check=True)
        return python

    return install_packages


@pytest.fixture(scope="session")
def gateway_python() -> Path:
    """Python of the environment `gateway`; its openai client is importable here, after dev's packages."""
    python = environment("gateway") / "bin" / "python3"
    [site] = python.parents[1].glob("lib/python3.*/site-packages")
    if str(site) not in sys.path:
        sys.path.append(str(site))
    return python


@pytest.fixture(scope="session")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """A repository of the test model."""
    return Setting(tmp_path_factory.mktemp("setting"))


@pytest.fixture(scope="session")
def triton(setting: Setting) -> Callable[..., Any]:
    """Starts `enginix serve` on the real tritonserver as a context manager; takes the HTTP port."""
    return partial(_triton, setting)


@contextmanager
def _triton(setting: Setting, http_port: int = 0) -> Iterator[Served]:
    """`enginix serve` on the real tritonserver."""
    words = setting.words()
    words[words.index("--http-port") + 1] = str(http_port)
    process = subprocess.Popen(
        [*words, "--exit-timeout", "5"],
        env=setting.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = json.loads(process.stdout.readline())
        client = TritonClient("127.0.0.1", found["httpPort"])
        yield Served(process, client, found["grpcPort"], found["metricsPort"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=600)


@dataclass
class Gateway:
    """A running `enginix gateway`."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    operator: str = OPERATOR
    alice: str = ALICE

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def client(self, key: str = OPERATOR, **more: Any) -> Any:
        """OpenAI's own client, which is not to try again by itself."""
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=600, **more)


@pytest.fixture(scope="session")
def start_gateway(gateway_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Starts a gateway on a description as a context manager."""

    @contextmanager
    def start(
        description: dict[str, Any],
        python: Path | None = None,
        wrap: tuple[str, ...] = (),
        **environment: str,
    ) -> Iterator[Gateway]:
        directory = tmp_path_factory.mktemp("gateway")
        for name, key in (("operator", OPERATOR), ("alice", ALICE), ("monitor", MONITOR)):
            (directory / name).write_text(key + "\n")
            (directory / name).chmod(0o600)
        found = {"version": 1, "name": "gateway", "keyFile": "operator", **description}
        (directory / "gateway.json").write_text(json.dumps(found))
        words = [sys.executable, "-m", "enginix", "gateway", str(directory / "gateway.json")]
        log = directory / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [
                    *wrap,
                    *words,
                    "--python",
                    str(python or gateway_python),
                    "--port",
                    "0",
                    "--exit-timeout",
                    "10",
                ],
                env={
                    "PATH": os.environ["PATH"],
                    "PYTHONPATH": str(TESTS.parent / "python"),
                    "CREDENTIALS_DIRECTORY": str(directory),
                    **environment,
                },
                stderr=out,
                stdout=out,
            )
        gateway = Gateway(process, 0, log)
        try:
            deadline = time.monotonic() + 500
            while not (said := [line for line in gateway.lines() if " answers at http" in line]):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            gateway.port = int(said[0].split("/v1")[0].rsplit(":", 1)[1])
            yield gateway
        finally:
            if process.poll() is None:
                process.terminate()
            assert process.wait(300) == 0, log.read_text()

    return start


@pytest.fixture(scope="session")
def tiny(triton: Callable[..., Any]) -> Iterator[Served]:
    """One Triton server for all tests that leave it as it is."""
    with triton() as served:
        yield served


@pytest.fixture(scope="session")
def gateway(start_gateway: Callable[..., Any], tiny: Served) -> Iterator[Gateway]:
    """One gateway for all tests that leave it as it is."""
    server = {"kind": "triton", "url": tiny.client.url, "model": "ensemble"}
    description = {
        "models": {"tiny": [server], "other": [server]},
        "aliases": {"gpt-tiny": "tiny"},
        "clients": {
            "alice": {"keyFile": "alice", "models": ["tiny"], "requestsPerMinute": 4},
        },
        "limits": {"maxBodyBytes": 200_000, "defaultMaxTokens": 16},
    }
    with start_gateway(description) as gateway:
        yield gateway
