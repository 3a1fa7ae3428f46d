"""The tiny trained model, and calibration data of it made once a session."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from enginix.quantize.calibration import CALIBRATION_FILE, Recipe, make_calibration

ROOT = Path(__file__).parents[3]
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def model() -> Path:
    return ROOT / "tests/models/tiny-qwen3"


@pytest.fixture(scope="session")
def calibration(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("calibration") / "data"
    make_calibration(model, out, None, Recipe(size=16, sequence_length=96))
    return out / CALIBRATION_FILE


@pytest.fixture
def tokenizer_only(model: Path, tmp_path: Path) -> Path:
    """The model without its weights."""
    there = tmp_path / "tokenizer"
    there.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        shutil.copyfile(model / name, there / name)
    return there


@pytest.fixture(scope="session")
def enginix() -> Command:
    """The command as people run it."""

    def run(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(ROOT / "python"), "OMP_NUM_THREADS": "2", **environment}
        return subprocess.run(
            [sys.executable, "-m", "enginix", *map(str, words)],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )

    return run
