"""What engines compute and say: wrong from a position on, and with other end tokens; each once passed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine_damage import spoil
from enginix.errors import GateError
from enginix.evaluation.judgement import quality
from enginix.evaluation.judgement.positions import judge_positions
from enginix.evaluation.judgement.suite import EngineRuns
from enginix.evaluation.reference_answers import answers as kept_answers
from enginix.evaluation.reference_answers import hf
from enginix.evaluation.reference_answers.answers import ReferenceAnswers
from enginix.evaluation.reference_answers.material import Material, load_material, sample_positions
from enginix.evaluation.reference_answers.subject import ExecutorSubject, TransformersSubject
from enginix.reference.executor import Executor


@pytest.fixture(scope="module")
def material(model: Path) -> Material:
    return load_material(hf.TransformersTokenizer(model), 2048, 2048)


def ask_first(material: Material) -> Material:
    return replace(material, prompts=material.prompts[:2], questions=material.questions[:12])


@pytest.fixture(scope="module")
def answers(model: Path, material: Material) -> ReferenceAnswers:
    """To the long text, and to the first prompts and questions: nothing else is asked here."""
    torch.set_num_threads(1)
    ends, subject = frozenset((2, 0)), TransformersSubject(model)
    positions = [p for octave in sample_positions(len(material.long)) for p in octave]
    long, _ = kept_answers.score_positions(subject, material.long, positions)
    little = ask_first(material)
    replies = subject.generate([q.tokens for q in little.questions], kept_answers.ANSWERED, ends)
    continuations = subject.generate([p.tokens for p in little.prompts], kept_answers.CONTINUED, ends)
    return ReferenceAnswers(
        {},
        material.sha256,
        ends,
        (),
        tuple(map(tuple, continuations)),
        tuple(map(tuple, replies)),
        (),
        long=long,
    )


POSITION_BOUNDS = {"kl": 0.05, "drift": 4.0}


@pytest.fixture(scope="module")
def long_logits(sound_forms: dict[str, Path], material: Material) -> torch.Tensor:
    return Executor.load(sound_forms["plain"], dtype="float32").forward([material.long])[0]


@pytest.fixture
def executor(sound_forms: dict[str, Path], material: Material, long_logits: torch.Tensor) -> Executor:
    """A sound executor that was asked the long text before."""

    def forward(texts: list[tuple[int, ...]], positions: Sequence[int] | None = None) -> list[torch.Tensor]:
        assert texts == [material.long]
        return [long_logits if positions is None else long_logits[list(positions)]]

    loaded = Executor.load(sound_forms["plain"], dtype="float32")
    loaded.forward = forward  # type: ignore[assignment,method-assign]
    return loaded


@pytest.mark.parametrize("form", ["plain", "fp8"])
def test_sound_engines_pass_at_every_length(
    sound_forms: dict[str, Path], material: Material, answers: ReferenceAnswers, form: str
) -> None:
    subject = ExecutorSubject(Executor.load(sound_forms[form], dtype="float32"))
    outcome = judge_positions(subject, material, answers, dict(POSITION_BOUNDS))
    assert outcome.passed and outcome.detail["longest"] == 2048, outcome.summary
    assert outcome.detail["byPosition"][-1]["to"] == 2046


@pytest.mark.parametrize("beyond", [128, 512, 2040])
def test_nan_beyond_a_position_fails(
    executor: Executor, material: Material, answers: ReferenceAnswers, beyond: int
) -> None:
    def change(logits: torch.Tensor) -> torch.Tensor:
        return torch.cat([logits[:beyond], torch.full_like(logits[beyond:], float("nan"))])

    subject = ExecutorSubject(spoil(executor, change))
    with pytest.raises(GateError, match="NaN"):
        judge_positions(subject, material, answers, dict(POSITION_BOUNDS))


def test_a_drift_with_position_fails(
    executor: Executor, material: Material, answers: ReferenceAnswers
) -> None:
    """Divergence that grows stays below the bound of each octave, and is no format's."""

    def change(logits: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        growth = torch.linspace(0, 0.3, len(logits))[:, None]
        return logits + growth * torch.randn(logits.shape, generator=generator)

    subject = ExecutorSubject(spoil(executor, change))
    outcome = judge_positions(subject, material, answers, dict(POSITION_BOUNDS))
    assert not outcome.passed and "times the least before it" in outcome.summary, outcome.summary


def test_an_engine_that_accepts_less_is_asked_for_the_start(
    sound_forms: dict[str, Path], material: Material, answers: ReferenceAnswers
) -> None:
    subject = ExecutorSubject(Executor.load(sound_forms["plain"], dtype="float32"))
    subject.max_length = 512
    outcome = judge_positions(subject, material, answers, dict(POSITION_BOUNDS))
    assert outcome.passed and outcome.detail["longest"] == 512 and outcome.detail["positions"] > 150


@pytest.mark.parametrize(
    "ends,says", [((1999,), "tokens after an end token"), ((2, 0, 25), "stop at a token that ends none")]
)
def test_end_tokens_are_judged_by_behaviour(
    sound_forms: dict[str, Path],
    model: Path,
    material: Material,
    answers: ReferenceAnswers,
    ends: tuple[int, ...],
    says: str,
) -> None:
    """An engine ends its answers by its own end tokens; they stop where the model's stop, or it fails."""
    short = ask_first(material)
    executor = Executor.load(sound_forms["plain"], dtype="float32")
    if 25 in ends:  # the first token of some reply
        ends = (*ends[:2], answers.replies[0][0])
    subject: Any = EngineRuns(ExecutorSubject(executor), frozenset(ends))
    bounds = {"loops": 1.0, "stops": 0.01}
    outcome = quality.judge_smoke(subject, short, answers, hf.TransformersTokenizer(model), bounds)
    assert not outcome.passed and says in outcome.summary, outcome.summary
    own: Any = EngineRuns(ExecutorSubject(executor), frozenset((2, 0)))
    assert quality.judge_smoke(own, short, answers, hf.TransformersTokenizer(model), bounds).passed
