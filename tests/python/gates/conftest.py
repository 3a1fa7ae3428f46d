"""The tiny trained models, converted once a session, and the answers of one to a part of the questions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from checkpoint_judge import ENDS, Judge
from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.cli import main
from enginix.evaluation.reference_answers import answers as kept_answers
from enginix.evaluation.reference_answers import hf
from enginix.evaluation.reference_answers import material as materials
from enginix.evaluation.reference_answers.subject import TransformersSubject
from tiny_model import ask_little, checkpoint, little_material, model, one_thread, recalling

__all__ = ["checkpoint", "little_material", "model", "one_thread", "recalling"]


@pytest.fixture(scope="session")
def recorded_answers(model: Path, made_once: Callable[..., Path]) -> Path:
    """The directory that ``enginix reference`` makes of tiny-qwen3, asked little (``ask_little``)."""

    def ask(out: Path) -> None:
        with ask_little():
            assert main(["reference", str(model), "-o", str(out)]) == 0

    return made_once("gates-answers", ask)


@pytest.fixture(scope="session")
def sound_forms(model: Path, made_once: Callable[..., Path]) -> dict[str, Path]:
    """A checkpoint as the model is, and one that is quantized row by row."""

    def make(out: Path) -> None:
        convert_model(model, out / "plain", ConvertOptions())
        convert_model(model, out / "fp8", ConvertOptions(quantize="FP8_PER_CHANNEL_PER_TOKEN"))

    out = made_once("gates-sound-forms", make)
    return {"plain": out / "plain", "fp8": out / "fp8"}


@pytest.fixture(scope="session")
def tokenizer(model: Path) -> hf.TransformersTokenizer:
    return hf.TransformersTokenizer(model)


@pytest.fixture(scope="session")
def little_judge(model: Path, tokenizer: hf.TransformersTokenizer) -> Judge:
    """Asks a part of the material, for engines that are far from every bound; all of the questions."""
    torch.set_num_threads(1)
    with ask_little(questions=38):
        material = materials.load_material(tokenizer, 2048, 2048)
    subject = TransformersSubject(model)
    answers = kept_answers.ask_reference(subject, material, ENDS, {"name": "tiny-qwen3"}, tokenizer)
    return Judge(tokenizer, material, answers)
