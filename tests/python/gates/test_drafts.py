"""An engine's answers save the model's work, and never become the model's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.errors import GateError
from enginix.evaluation.judgement import judge as judgement
from enginix.evaluation.judgement.outcome import GateOutcome
from enginix.evaluation.reference_answers.answers import CONTINUED
from enginix.evaluation.reference_answers.reference_asker import ask_model
from enginix.evaluation.reference_answers.subject import ExecutorSubject, TransformersSubject

pytestmark = pytest.mark.usefixtures("little_material")


@pytest.fixture(scope="module")
def checkpoints(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    work = tmp_path_factory.mktemp("checkpoints")
    convert_model(model, work / "plain", ConvertOptions())
    convert_model(model, work / "fp8", ConvertOptions(quantize="FP8_PER_CHANNEL_PER_TOKEN"))
    return {name: work / name for name in ("plain", "fp8")}


@pytest.fixture(scope="module")
def continuations(model: Path) -> tuple[tuple[int, ...], ...]:
    """The model's, without an engine."""
    return ask_model(model)[0].continuations


@dataclass
class Judged:
    """What was found of an engine, and how its model was asked."""

    outcomes: dict[str, GateOutcome]
    continuations: tuple[tuple[int, ...], ...]
    computed: list[int]


def judge_engine(
    checkpoint: Path, model: Path, monkeypatch: pytest.MonkeyPatch, gate: str = "smoke"
) -> Judged:
    """Judge by one gate; ``computed`` counts the prompts that the model continued by itself."""
    asked: list[Any] = []
    computed: list[int] = []
    continue_batch, continue_prompt = (
        TransformersSubject._continue_batch,
        TransformersSubject._continue_prompt,
    )

    def ask(*words: Any) -> Any:
        asked.append(ask_model(*words))
        return asked[-1]

    def continue_group(subject: Any, prompts: Sequence[Sequence[int]], most: int, ends: Any) -> Any:
        computed.extend([1] * len(prompts) if most == CONTINUED else [])
        return continue_batch(subject, prompts, most, ends)

    def continue_alone(subject: Any, prompt: Sequence[int], most: int, ends: Any) -> Any:
        computed.extend([1] if most == CONTINUED else [])
        return continue_prompt(subject, prompt, most, ends)

    monkeypatch.setattr(judgement, "ask_model", ask)
    monkeypatch.setattr(TransformersSubject, "_continue_batch", continue_group)
    monkeypatch.setattr(TransformersSubject, "_continue_prompt", continue_alone)
    case = judgement.CheckpointGateInputs(checkpoint, model, model, model, {gate: {}})
    outcomes, _ = judgement.judge_checkpoint(case)
    return Judged({o.gate: o for o in outcomes}, asked[0][0].continuations, computed)


def test_a_sound_engine_drafts_the_answers_that_its_model_gives(
    checkpoints: dict[str, Path],
    model: Path,
    continuations: tuple[tuple[int, ...], ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged = judge_engine(checkpoints["plain"], model, monkeypatch)
    assert judged.outcomes["smoke"].passed
    assert judged.continuations == continuations and not judged.computed


@pytest.mark.parametrize(("name", "gate"), [("fp8", "smoke"), ("plain", "perplexity")])
def test_an_engine_drafts_nothing_where_that_saves_nothing(
    checkpoints: dict[str, Path],
    model: Path,
    continuations: tuple[tuple[int, ...], ...],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    gate: str,
) -> None:
    judged = judge_engine(checkpoints[name], model, monkeypatch, gate)
    assert judged.continuations == continuations and len(judged.computed) == len(continuations)


@pytest.mark.parametrize("damage", ["other tokens", "no such tokens", "too few", "none", "an error"])
def test_a_broken_engine_drafts_no_answer_of_its_model(
    checkpoints: dict[str, Path],
    model: Path,
    continuations: tuple[tuple[int, ...], ...],
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    generate = ExecutorSubject.generate

    def answer(subject: Any, *words: Any, **options: Any) -> Any:
        if damage == "an error":
            raise GateError("the engine failed while answering")
        answers = generate(subject, *words, **options)
        return {
            "other tokens": [[token ^ 1 for token in tokens] for tokens in answers],
            "no such tokens": [[token + 2048 for token in tokens] for tokens in answers],
            "too few": [tokens[:1] for tokens in answers],
            "none": [],
        }[damage]

    monkeypatch.setattr(ExecutorSubject, "generate", answer)
    judged = judge_engine(checkpoints["plain"], model, monkeypatch)
    assert judged.continuations == continuations and judged.computed
    if damage != "other tokens":  # which are neither empty nor loops
        assert not judged.outcomes["smoke"].passed
