"""The Python that has NVIDIA's wheel, the models to export, and the stand-in of what needs a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import environments

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
        "OMP_NUM_THREADS": "2",
        **more,
    }


@pytest.fixture(scope="session")
def enginix(edge: Path) -> Run:
    """Runs an enginix command in that Python."""

    def run(*words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        command = [edge, "-m", "enginix", *words]
        return subprocess.run(command, env=environment(**more), capture_output=True, text=True, timeout=600)

    return run


@pytest.fixture(scope="session")
def models(made_once: Callable[..., Path]) -> Callable[[str], Path]:
    """The tiny model as it is (``bf16``) or quantized by ModelOpt; each made once."""

    def make(name: str) -> Path:
        if name == "bf16":
            return TINY

        def quantize(out: Path) -> None:
            words = [sys.executable, HERE / "quantized.py", TINY, name, out]
            subprocess.run(words, env=environment(), check=True, capture_output=True, timeout=600)

        return made_once(f"edgellm-model-{name}", quantize)

    return make


@pytest.fixture(scope="session")
def exports(
    made_once: Callable[..., Path], models: Callable[[str], Path], enginix: Run
) -> Callable[[str], Path]:
    """Checked exports of those models by NVIDIA's exporter; each made once."""

    def make(name: str) -> Path:
        def export(out: Path) -> None:
            done = enginix("edgellm-export", models(name), "-o", out)
            assert done.returncode == 0, done.stderr

        return made_once(f"edgellm-export-{name}", export)

    return make


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
