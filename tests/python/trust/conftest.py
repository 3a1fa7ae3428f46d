"""A model, checkpoint, engine and repository, whole; tests change copies."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from enginix.cli import main
from enginix.kinds.triton_repository.repository import build_triton_repository

MODEL = Path(__file__).resolve().parents[2] / "models" / "tiny-qwen3"


@dataclass(frozen=True)
class Stages:
    """The directories of one chain."""

    root: Path

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint"

    @property
    def engine(self) -> Path:
        return self.root / "engine"

    @property
    def repository(self) -> Path:
        return self.root / "repository"


def make_stages(root: Path) -> None:
    root.mkdir()
    stages = Stages(root)
    assert main(["convert", str(MODEL), "-o", str(stages.checkpoint), "--dtype", "float32"]) == 0
    words = ["build", str(stages.checkpoint), "--kind", "reference", "--model", str(MODEL), "--no-gates"]
    assert main([*words, "-o", str(stages.engine)]) == 0


@pytest.fixture(scope="session")
def whole(made_once: Callable[..., Path]) -> Stages:
    """Checkpoint and engine that no test changes."""
    return Stages(made_once("trust", make_stages))


@pytest.fixture
def stages(whole: Stages, tmp_path: Path) -> Stages:
    """Copies to change, and a repository of the copied engine."""
    root = tmp_path / "stages"
    shutil.copytree(whole.root, root)
    build_triton_repository(root / "engine", root / "repository")
    return Stages(root)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of digests of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "enginix" / "digests"
