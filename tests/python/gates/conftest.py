"""The tiny trained models, converted once a session, and the answers of one to a part of the questions."""

from collections.abc import Callable
from pathlib import Path

import pytest

from enginix.cli import main
from tiny_model import ask_little, checkpoint, little_material, model, one_thread, recalling

__all__ = ["checkpoint", "little_material", "model", "one_thread", "recalling"]


@pytest.fixture(scope="session")
def recorded_answers(model: Path, made_once: Callable[..., Path]) -> Path:
    """The directory that ``enginix reference`` makes of tiny-qwen3, asked little (``ask_little``)."""

    def ask(out: Path) -> None:
        with ask_little():
            assert main(["reference", str(model), "-o", str(out)]) == 0

    return made_once("gates-answers", ask)
