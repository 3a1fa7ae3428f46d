"""The Python that has NVIDIA's wheel, the models to export, and the stand-in of what needs a GPU."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import environments
from enginix.errors import ModelError
from enginix.kinds.edgellm.source import read_export_source

ROOT = Path(__file__).resolve().parents[3]
TINY = ROOT / "tests/models/tiny-qwen3"
HERE = Path(__file__).parent
FORMATS = ("fp8", "nvfp4", "int4_awq", "int8_sq")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def edge() -> Path:
    """Python of the environment `edgellm`, in which Nix exports."""
    try:
        return environments.environment("edgellm") / "bin" / "python3"
    except environments.MissingEnvironment as error:
        pytest.skip(str(error))


def environment(**more: str) -> dict[str, str]:
    kept = {k: os.environ[k] for k in ("PATH", "TMPDIR", "HOME") if k in os.environ}
    return {
        **kept,
        "PYTHONPATH": str(ROOT / "python"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        **more,
    }


@pytest.fixture(scope="session")
def enginix(edge: Path) -> Run:
    """Runs an enginix command in that Python."""

    def run(*words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        command = [edge, "-m", "enginix", *words]
        return subprocess.run(command, env=environment(**more), capture_output=True, text=True, timeout=600)

    return run


@contextlib.contextmanager
def start_warm_python(edge: Path, files: Path) -> Iterator[Run]:
    """Run that Python by forks of a process that has imported what exports import (warm_python.py)."""
    # As enginix starts the exporter.
    settings = environment(PYTHONHASHSEED="0", HOME=str(files), TRANSFORMERS_OFFLINE="1")
    out, err, log = (files / name for name in ("out", "err", "log"))

    def start() -> subprocess.Popen[str]:
        words, pipe = [edge, HERE / "warm_python.py", TINY], subprocess.PIPE
        with log.open("w") as stream:
            return subprocess.Popen(words, env=settings, stdin=pipe, stdout=pipe, stderr=stream, text=True)

    server = start()

    def run(*words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        nonlocal server
        if server.poll() is not None:  # a test of signals ends all that its process started
            server = start()
        assert server.stdin is not None and server.stdout is not None
        request: dict[str, Any] = {"words": list(map(str, words)), "env": environment(**more)}
        request |= {"cwd": os.getcwd(), "out": str(out), "err": str(err)}
        print(json.dumps(request), file=server.stdin, flush=True)
        status = server.stdout.readline()
        assert status, log.read_text()[-2000:]
        texts = [path.read_text(errors="replace") for path in (out, err)]
        return subprocess.CompletedProcess(words, int(status), *texts)

    try:
        yield run
    finally:
        server.communicate()  # it ends where its input does


@pytest.fixture(scope="session")
def warm_python(edge: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with start_warm_python(edge, tmp_path_factory.mktemp("warm-python")) as run:
        yield run


@pytest.fixture(scope="session")
def run_export(warm_python: Run) -> Run:
    """Runs the command ``edgellm-export`` in a fork."""
    return lambda *words, **more: warm_python("-m", "enginix", "edgellm-export", *words, **more)


@pytest.fixture(scope="session")
def models(made_once: Callable[..., Path]) -> Callable[[str], Path]:
    """The tiny model as it is (``bf16``) or quantized by ModelOpt; all made once."""

    def quantize(out: Path) -> None:
        words = [sys.executable, HERE / "quantized.py", TINY, out, *FORMATS]
        subprocess.run(words, env=environment(), check=True, capture_output=True, timeout=600)

    return lambda name: TINY if name == "bf16" else made_once("edgellm-models", quantize) / name


@pytest.fixture(scope="session")
def exports(
    made_once: Callable[..., Path],
    models: Callable[[str], Path],
    enginix: Run,
    request: pytest.FixtureRequest,
) -> Callable[[str], Path]:
    """Checked exports of those models by NVIDIA's exporter, each made once: ``bf16`` in new processes."""

    def make(name: str) -> Path:
        def export(out: Path) -> None:
            words = (models(name), "-o", out)
            if name == "bf16":
                done = enginix("edgellm-export", *words)
            else:
                done = request.getfixturevalue("run_export")(*words)
            assert done.returncode == 0, done.stderr

        return made_once(f"edgellm-export-{name}", export)

    return make


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the tiny model, to change."""
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def change(path: Path, **values: Any) -> None:
    """Sets keys of a JSON file; None stays null."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refuse(model: Path, *words: str) -> None:
    """Checks that reading a model for an export fails with these words, and says where and what to do."""
    with pytest.raises(ModelError) as caught:
        read_export_source(model)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert caught.value.fix and caught.value.where


@pytest.fixture
def driver(tmp_path: Path) -> Callable[..., Path]:
    """A stand-in GPU driver."""

    def make(name: str = "NVIDIA GeForce RTX 5090", capability: str = "12.0") -> Path:
        out = tmp_path / f"driver-{capability}"
        words = [
            "bash",
            ROOT / "tests/standin/driver.sh",
            out,
            name,
            capability,
            "32607",
            "32000",
            "590.44.01",
        ]
        subprocess.run(words, check=True)
        return out

    return make


@pytest.fixture
def runtime(tmp_path: Path, edge: Path) -> Callable[..., Path]:
    """A stand-in Python with TensorRT; see standin/sitecustomize.py for what of it is real."""

    def make(misbehave: str = "") -> Path:
        out = tmp_path / f"python-{misbehave or 'good'}"
        words = ["bash", HERE / "standin/python.sh", out, edge, misbehave, ROOT / "python"]
        subprocess.run(words, check=True)
        return out

    return make
