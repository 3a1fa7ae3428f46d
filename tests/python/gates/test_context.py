"""The gate context on tiny-recall: healthy engines find planted facts, broken ones are rejected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.evaluation.judgement import quality, suite
from enginix.evaluation.judgement.judge import explain_missing_context
from enginix.evaluation.judgement.outcome import GateOutcome
from enginix.evaluation.reference_answers import hf
from enginix.evaluation.reference_answers import material as materials
from enginix.evaluation.reference_answers.answers import ANSWERED, ReferenceAnswers
from enginix.evaluation.reference_answers.material import Material
from enginix.evaluation.reference_answers.subject import ExecutorSubject, TransformersSubject
from enginix.reference import config
from enginix.reference.executor import Executor
from enginix.tables import load_table
from tiny_model import Tensors, damaged, make_loud, make_recalling, quantize

ENDS = frozenset({0, 2})
FORMATS = ("FP8", "FP8_KV", "FP8_PC_PT", "INT8_SQ", "INT4_AWQ", "W4A8_AWQ", "NVFP4")


class Judge:
    """Asks for planted facts, and compares with what transformers says."""

    def __init__(self, model: Path) -> None:
        self.tokenizer = hf.TransformersTokenizer(model)
        self.material: Material = materials.load_material(self.tokenizer, 2048, 2048)
        told = TransformersSubject(model).generate([q.tokens for q in self.material.recalls], ANSWERED, ENDS)
        recalls = tuple(map(tuple, told))
        self.answers = ReferenceAnswers({}, self.material.sha256, ENDS, (), (), (), (), recalls=recalls)

    def __call__(self, checkpoint: Path, wrap: Callable[[Any], Any] = lambda subject: subject) -> GateOutcome:
        executor = Executor.load(checkpoint, dtype="float32")
        bounds = suite.resolve_checkpoint_bounds(config.read_executor_config(checkpoint), {"context": {}})[
            "context"
        ]
        return quality.judge_context(
            wrap(ExecutorSubject(executor)), self.material, self.answers, self.tokenizer, bounds
        )


@pytest.fixture(scope="session")
def judge(recalling: Path) -> Judge:
    torch.set_num_threads(1)
    return Judge(recalling)


@pytest.fixture(scope="session")
def little_judge(recalling: Path) -> Judge:
    """Asks for facts at two depths of each length, for engines that are far from every bound."""
    torch.set_num_threads(1)
    facts = load_table("gate_facts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(facts, "depths", facts["depths"][::2])
        return Judge(recalling)


@pytest.fixture(scope="session")
def sound(recalling: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sound") / "out"
    convert_model(recalling, out, ConvertOptions())
    return out


@pytest.fixture(scope="session")
def quantized(recalling: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Healthy checkpoints by format, each made once."""

    @cache
    def make(name: str) -> Path:
        return quantize(recalling, name, tmp_path_factory.mktemp(name))

    return make


class Amnesic:
    """A stand-in for an engine that sees no more than the last 160 tokens of what it is asked."""

    def __init__(self, subject: ExecutorSubject) -> None:
        self.subject, self.max_length = subject, subject.max_length

    def generate(self, prompts: Sequence[Sequence[int]], most: int, ends: Any) -> list[list[int]]:
        return self.subject.generate([p[-160:] for p in prompts], most, ends)


def lose_rope_base(checkpoint: Path, out: Path) -> Path:
    """Another rotary base than the model's: a default in place of what config.json says."""
    shutil.copytree(checkpoint, out)
    raw = json.loads((out / "config.json").read_text())
    raw["rotary_base"] = 500000.0
    (out / "config.json").write_text(json.dumps(raw))
    return out


def saturate(recalling: Path, out: Path) -> Path:
    """KV scales of 1.0 on a cache with large values."""
    out.parent.mkdir(exist_ok=True)
    convert_model(make_loud(recalling, out.with_name("loud")), out, ConvertOptions(kv_cache="FP8"))
    return out


__all__ = ["make_recalling"]  # for gates_table.py


def shuffle(tensors: Tensors) -> None:
    name = "transformer.layers.1.attention.qkv.weight"
    tensors[name] = tensors[name].roll(7, 0)


# Name → (sound checkpoint, the model, where to) → broken checkpoint.
BROKEN: dict[str, Callable[[Path, Path, Path], Path]] = {
    "rotary base of 500000 for 10000": lambda sound, _, out: lose_rope_base(sound, out),
    "KV scales of 1.0, keys × 256": lambda _, model, out: saturate(model, out),
    "one layer's keys, queries and values shuffled": lambda sound, _, out: damaged(sound, out, shuffle),
}


def test_a_sound_engine_finds_what_the_model_finds(little_judge: Judge, sound: Path) -> None:
    outcome = little_judge(sound)
    assert outcome.passed, outcome.summary
    detail = outcome.detail
    assert detail["score"] == detail["referenceScore"] == detail["questions"], outcome.summary
    assert detail["longest"] > 1800, "the longest text that the model takes is not asked"


def test_every_format_has_a_bound_with_its_reason_and_coarser_ones_may_lose_more() -> None:
    rows = load_table("gates")["formats"].values()
    shares = [row["bounds"]["context"]["share"] for row in rows]
    assert shares == sorted(shares, reverse=True) and len(set(shares)) > 1
    assert all("Planted facts: " in row["reason"] for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_broken_engines_lose_facts(
    little_judge: Judge, sound: Path, recalling: Path, tmp_path: Path, name: str
) -> None:
    outcome = little_judge(BROKEN[name](sound, recalling, tmp_path / "broken"))
    assert not outcome.passed, outcome.summary
    assert outcome.detail["lost"] > outcome.detail["won"]
    assert far_below_every_bound(outcome), outcome.summary


def far_below_every_bound(outcome: GateOutcome) -> bool:
    """No format's bound is near what a broken engine finds: at most two thirds of what is asked of any."""
    least = min(row["bounds"]["context"]["share"] for row in load_table("gates")["formats"].values())
    return bool(outcome.detail["score"] <= 2 / 3 * least * outcome.detail["referenceScore"])


def test_an_engine_that_forgets_is_rejected(little_judge: Judge, sound: Path) -> None:
    outcome = little_judge(sound, Amnesic)
    assert not outcome.passed and outcome.detail["lost"] >= 5, outcome.summary
    assert far_below_every_bound(outcome), outcome.summary


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_healthy_formats_find_facts(judge: Judge, quantized: Callable[[str], Path], name: str) -> None:
    outcome = judge(quantized(name))
    assert outcome.passed, outcome.summary


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_broken_ones_of_every_format_are_rejected(
    little_judge: Judge, quantized: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    shuffled = little_judge(damaged(quantized(name), tmp_path / "shuffled", shuffle))
    for outcome in (shuffled, little_judge(quantized(name), Amnesic)):
        assert not outcome.passed and far_below_every_bound(outcome), outcome.summary


def test_the_gate_is_a_default_where_the_model_finds_facts(little_judge: Judge, sound: Path) -> None:
    """Of every format and context; a model that finds none cannot say what an engine of it should find."""
    found = config.read_executor_config(sound)
    assert "context" in suite.default_checkpoint_gates(found)
    assert (
        explain_missing_context(little_judge.answers, little_judge.material, little_judge.tokenizer) is None
    )
    nothing = replace(little_judge.answers, recalls=((2,),) * len(little_judge.material.recalls))
    assert "finds none" in str(
        explain_missing_context(nothing, little_judge.material, little_judge.tokenizer)
    )
    short = replace(little_judge.material, recalls=())
    assert "no text" in str(explain_missing_context(little_judge.answers, short, little_judge.tokenizer))
