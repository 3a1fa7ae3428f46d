"""`enginix bench ENGINE` of the kinds of trtllm-serve: a stand-in of it, in a stand-in of its image."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import enginix
from enginix.bench_record import StoredSpeed, read_bench_record
from enginix.cli import main

SHORT = ["--requests", "3", "--warmup", "0", "--output-tokens", "5", "--input-words", "3"]


@pytest.fixture
def engine(model: Path, tmp_path: Path) -> Path:
    words = ["build", "--kind", "llmapi", "--model", str(model), "--runtime", "trtllm-1.2.1"]
    assert main([*words, "--target", "h200", "-o", str(tmp_path / "engine")]) == 0
    return tmp_path / "engine"


def list_servers(rootfs: Path) -> Iterator[int]:
    """Yield the processes whose command line names a root file system."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if str(rootfs).encode() in words and int(process.name) != os.getpid():
                yield int(process.name)


def test_an_engine_is_served_measured_and_stopped(
    engine: Path, rootfs: Path, driver: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", str(engine), *SHORT, "--rootfs", str(rootfs), "--driver", str(driver()), "--json"]
    capsys.readouterr()
    assert main(words) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["model"] == "stand-in" and measured["failed"] == 0
    assert measured["outputTokens"] == 5 and measured["engine"]["kind"] == "llmapi"
    assert 0 < measured["start"]["readySeconds"] <= measured["start"]["firstTokenSeconds"]
    stored = read_bench_record(engine)
    assert isinstance(stored, StoredSpeed) and stored.ready == measured["start"]["readySeconds"]
    assert not list(list_servers(rootfs))
    # Kept: a second one is refused before a server is started.
    assert main(words) == 2
    page = engine.parent / "page.html"
    assert main(["compare", str(engine), "-o", str(page)]) == 0
    assert f"ready {stored.ready:,.3g} s" in page.read_text()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_stops_the_server(
    number: signal.Signals, status: int, engine: Path, rootfs: Path, driver: Callable[..., Path]
) -> None:
    words = [sys.executable, "-m", "enginix", "bench", str(engine), "--requests", "100000"]
    words += ["--rootfs", str(rootfs), "--driver", str(driver())]
    # The child imports the package that this test has, wherever pytest was started.
    variables = {**os.environ, "PYTHONPATH": str(Path(enginix.__file__).parents[1])}
    with subprocess.Popen(words, env=variables, stderr=subprocess.PIPE, text=True) as bench:
        assert bench.stderr is not None
        lines = []
        for line in bench.stderr:
            lines.append(line)
            if "ready after" in line:
                break
        assert list(list_servers(rootfs)), lines
        bench.send_signal(number)
        said = bench.stderr.read()
    assert bench.returncode == status, said
    deadline = time.monotonic() + 20
    while list(list_servers(rootfs)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not list(list_servers(rootfs))
    assert not engine.with_name("engine.bench.json").exists()


def test_another_gpu_starts_no_server(
    engine: Path, rootfs: Path, driver: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """An engine of kind llmapi is portable; a driver below its floor is not."""
    words = ["bench", str(engine), "--rootfs", str(rootfs), "--driver", str(driver(version="1.0"))]
    assert main(words) in (1, 5)
    said = capsys.readouterr().err
    assert "driver: built for" in said and "fix:" in said and "ended with status" not in said


def test_without_a_runtime_the_way_is_named(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(engine)]) == 5
    said = capsys.readouterr().err
    assert "no trtllm-serve on this machine" in said
    assert "--rootfs DIR" in said and f"--engine {engine}" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "cuda"], "an option of kind reference; this engine is of kind llmapi"),
        (["--tritonserver", "."], "an option of kind reference and rtx"),
        (["--engine", "."], "bench starts a server of this engine"),
        (["--model", "x"], "bench starts a server of this engine"),
    ],
)
def test_options_of_others_are_refused(
    engine: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(engine), *words]) == 2
    assert said in capsys.readouterr().err
