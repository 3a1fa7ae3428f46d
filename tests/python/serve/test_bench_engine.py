"""`enginix bench ENGINE` of kind reference: the real tritonserver behind the real gateway."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import enginix
from enginix.bench_record import StoredSpeed, read_bench_record
from environments import environment

pytestmark = pytest.mark.slow


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose name leaves room for sockets, whose paths have at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        yield Path(directory)


@pytest.fixture
def bench(served_engine: Path, short_path: Path) -> tuple[list[str], dict[str, str], Path]:
    """The command, its environment, and a copy of the engine: the measurement is written beside it."""
    engine = short_path / "engine"
    shutil.copytree(served_engine, engine)
    variables = {
        **os.environ,
        "PYTHONPATH": str(Path(enginix.__file__).parents[1]),
        "ENGINIX_GATEWAY_PYTHON": str(environment("gateway") / "bin" / "python3"),
        "ENGINIX_TRITONSERVER": str(environment("tritonserver")),
        "TMPDIR": str(short_path / "tmp"),
    }
    (short_path / "tmp").mkdir()
    return [sys.executable, "-m", "enginix", "bench", str(engine)], variables, engine


def list_processes(directory: Path) -> list[str]:
    """Return the command lines that name a directory, or run in its environment."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                words = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if str(directory).encode() in words:
                found.append(words.replace(b"\0", b" ").decode())
    return found


def test_an_engine_is_served_measured_and_stopped(
    bench: tuple[list[str], dict[str, str], Path], short_path: Path
) -> None:
    words, variables, engine = bench
    short = ["--requests", "2", "--output-tokens", "4", "--input-words", "4", "--json"]
    done = subprocess.run([*words, *short], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["failed"] == 0 and measured["outputTokens"] == 4
    start = measured["start"]
    assert 0 < start["readySeconds"] < start["firstTokenSeconds"]
    stored = read_bench_record(engine)
    assert isinstance(stored, StoredSpeed) and stored.ready == start["readySeconds"]
    assert list_processes(short_path) == [] and list((short_path / "tmp").glob("enginix-bench-*")) == []


def test_an_interrupt_leaves_nothing_behind(
    bench: tuple[list[str], dict[str, str], Path], short_path: Path
) -> None:
    words, variables, engine = bench
    with subprocess.Popen(
        [*words, "--requests", "100000"], env=variables, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "ready after" in line:
                break
        process.send_signal(signal.SIGINT)
        said.append(process.stderr.read())
    assert process.returncode == 130, said
    assert list_processes(short_path) == [] and list((short_path / "tmp").glob("enginix-bench-*")) == []
    assert not engine.with_name("engine.bench.json").exists()
