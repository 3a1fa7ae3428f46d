"""What every fault needs: the real tritonserver, a repository, `enginix serve` as a user starts it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Scripts beside this file, and tests/bench, have no other way to tests/environments.py.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import enginix
from enginix.cli import main
from enginix.kinds.triton_repository.repository import build_triton_repository
from enginix.serve.client import TritonClient
from enginix.triton.options import RepositoryOptions
from environments import environment

TESTS = Path(__file__).parents[1]
PACKAGE = Path(enginix.__file__).parents[1]
MODEL = TESTS / "models" / "tiny-qwen3"


@dataclass
class Served:
    """A running `enginix serve`."""

    process: subprocess.Popen[str]
    client: TritonClient
    grpc: int
    metrics: int

    def children(self) -> dict[int, str]:
        """Processes below it, by id, with their command lines."""
        parents: dict[int, int] = {}
        words: dict[int, str] = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                parents[int(path.name)] = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
                words[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ")
            except (OSError, IndexError):
                continue
        found = {self.process.pid}
        grown = True
        while grown:
            more = {p for p, parent in parents.items() if parent in found} - found
            found |= more
            grown = bool(more)
        return {p: words[p] for p in found - {self.process.pid}}

    def model(self, name: str) -> int:
        """The one process of a Python model."""
        found = [pid for pid, line in self.children().items() if "stub" in line and f"/{name}/" in line]
        assert len(found) == 1, (name, found)
        return found[0]

    def computes(self, seconds: float = 0.5) -> bool:
        """Whether the executor computes in the next seconds, by its processor time.

        Triton's own counts of a decoupled model end when a request is handed over, and say nothing of it.
        """
        executor, used = self.model("tensorrt_llm"), []
        for wait in (seconds, 0):
            words = (Path("/proc") / str(executor) / "stat").read_text().rsplit(")", 1)[1].split()
            used.append((int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK"))
            time.sleep(wait)
        # A clock tick or two are others'.
        return used[1] - used[0] > seconds / 20

    def await_idle(self, seconds: float) -> None:
        """Waits until the executor computes for nobody any more."""
        deadline = time.monotonic() + seconds
        while self.computes():
            assert time.monotonic() < deadline, f"it still computes after {seconds} s"

    def child(self, word: str) -> int:
        """The one process below it whose command line has a word."""
        found = [pid for pid, line in self.children().items() if word in line]
        assert len(found) == 1, (word, found)
        return found[0]


class Setting:
    """Made once; every fault starts its own server.

    Args:
        engine: served in place of tiny-qwen3.
        tritonserver, python: in place of the environments of tests/hostpkgs.
    """

    def __init__(
        self,
        directory: Path,
        engine: Path | None = None,
        *,
        tritonserver: Path | None = None,
        python: Path | None = None,
        options: RepositoryOptions | None = None,
    ) -> None:
        self.directory = directory
        self.tritonserver = tritonserver or environment("tritonserver")
        self.python = python or environment("runtime") / "bin" / "python3"
        if engine is None:
            checkpoint, engine = directory / "checkpoint", directory / "engine"
            assert main(["convert", str(MODEL), "-o", str(checkpoint), "--dtype", "float32"]) == 0
            words = ["build", str(checkpoint), "--kind", "reference", "--model", str(MODEL)]
            assert main([*words, "-o", str(engine), "--no-gates"]) == 0
        self.repository = directory / "repository"
        build_triton_repository(engine, self.repository, options or RepositoryOptions(max_batch_size=64))

    def words(self, *more: str) -> list[str]:
        """The command."""
        given = ["serve", str(self.repository), "--tritonserver", str(self.tritonserver)]
        ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
        return [
            sys.executable,
            "-m",
            "enginix",
            *given,
            "--python",
            str(self.python),
            *ports,
            "--json",
            *more,
        ]

    @property
    def environment(self) -> dict[str, str]:
        """Its environment."""
        return {**os.environ, "PYTHONPATH": str(PACKAGE)}

    @contextmanager
    def serve(self, *more: str, wrap: tuple[str, ...] = ()) -> Iterator[Served]:
        """Starts it, waits until it answers, and in the end makes sure that nothing is left of it."""
        process = subprocess.Popen(
            [*wrap, *self.words(*more)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        found = json.loads(line)
        assert "httpPort" in found, f"{line}{process.stderr.read()}"
        client = TritonClient("127.0.0.1", found["httpPort"])
        served = Served(process, client, found["grpcPort"], found["metricsPort"])
        # Other servers of this machine have regions of their own.
        started = served.children()
        prefixes = set(re.findall(r"shm-region-prefix-name=(enginix-[0-9a-f]+-)", " ".join(started.values())))
        assert len(prefixes) == 1
        failed = True
        try:
            yield served
            failed = False
        finally:
            # Those of a command that was killed are no one's children now.
            left = {*started, *served.children()}
            process.terminate()
            try:
                _, said = process.communicate(timeout=60)
                if failed:
                    sys.stderr.write(f"the server's last lines:\n{said[-4000:]}\n")
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                raise
        # A server whose command was killed has its own exit time-out.
        deadline = time.monotonic() + 60
        while any(_serves(pid) for pid in left):
            assert time.monotonic() < deadline, "processes are left"
            time.sleep(0.1)
        mine = {n for n in os.listdir("/dev/shm") if n.startswith(tuple(prefixes))}
        assert not mine, f"shared memory is left: {mine}"


def _serves(pid: int) -> bool:
    try:
        words = (Path("/proc") / str(pid) / "cmdline").read_text()
    except OSError:
        return False
    return "tritonserver" in words or "triton_python_backend_stub" in words
