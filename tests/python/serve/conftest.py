"""A repository of the test model, and the real tritonserver."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from enginix.cli import main
from enginix.kinds.triton_repository.repository import build_triton_repository
from enginix.ports import reserve_ports
from enginix.serve.client import TritonClient
from enginix.serve.launch import Endpoints, LaunchSpec
from enginix.serve.readiness import await_ready, read_golden
from enginix.serve.supervisor import SupervisedServer
from enginix.serve.tritonserver import TritonServer, find_tritonserver
from enginix.triton.options import RepositoryOptions
from environments import environment

TESTS = Path(__file__).parents[2]
MODEL = TESTS / "models" / "tiny-qwen3"


@pytest.fixture(scope="session")
def serving_python() -> Path:
    """The environment of the Python models: $ENGINIX_SERVING_PYTHON, else the one that Nix serves with."""
    named = os.environ.get("ENGINIX_SERVING_PYTHON")
    return Path(named) if named else environment("runtime") / "bin" / "python3"


@pytest.fixture(scope="session")
def tritonserver() -> TritonServer:
    """The real server, as Nix lays it out."""
    return find_tritonserver(environment("tritonserver"))


@pytest.fixture(scope="session")
def served_engine(made_once: Callable[..., Path]) -> Path:
    """The reference engine of tests/models/tiny-qwen3, without gates: those have their own tests."""

    def make(out: Path) -> None:
        checkpoint = out.with_name("checkpoint")
        assert main(["convert", str(MODEL), "-o", str(checkpoint), "--dtype", "float32"]) == 0
        words = ["build", str(checkpoint), "--kind", "reference", "--model", str(MODEL), "--no-gates"]
        assert main([*words, "-o", str(out)]) == 0

    return made_once("served-engine", make)


@pytest.fixture(scope="session")
def served_repository(served_engine: Path, made_once: Callable[..., Path]) -> Path:
    """A repository of that engine; do not change it."""
    return made_once(
        "served-repository",
        lambda out: build_triton_repository(served_engine, out, RepositoryOptions(max_batch_size=16)),
    )


@dataclass
class Running:
    """A server that answers."""

    server: SupervisedServer
    client: TritonClient
    log: list[str]


@pytest.fixture(scope="session")
def serve(tritonserver: TritonServer, serving_python: Path) -> Callable[[Path], object]:
    """Starts a server on a repository as a context manager."""

    @contextmanager
    def start(repository: Path) -> Iterator[Running]:
        from enginix import manifest

        ports = reserve_ports("127.0.0.1", [("http", 0), ("grpc", 0), ("metrics", 0)])
        plan = LaunchSpec(
            tritonserver, repository, serving_python, Endpoints("127.0.0.1", *ports), exit_timeout=10
        )
        log: list[str] = []
        with SupervisedServer(plan, log.append) as server:
            client = TritonClient("127.0.0.1", ports[0])
            await_ready(server, client, read_golden(manifest.read_manifest(repository)), 120)
            yield Running(server, client, log)

    return start


@pytest.fixture(scope="module")
def running(serve: Callable[[Path], object], served_repository: Path) -> Iterator[Running]:
    """One server for all tests of a module that leave it as it is."""
    with ExitStack() as stack:
        yield stack.enter_context(serve(served_repository))  # type: ignore[arg-type]
