"""Long context: what is asked is what it says, and an engine that forgets is rejected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginix.evaluation.reference_answers import recall
from enginix.evaluation.reference_answers.answers import ANSWERED
from enginix.tables import load_table

ROWS = load_table("gate_facts")
FILLER = ["\n\n".join(f"paragraph {n} " + "word " * (n % 7 * 9) for n in range(40))]


def _count(text: str) -> int:
    """A stand-in tokenizer: words, and five tokens of a chat template."""
    return len(text.split()) + 5


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9000))
def test_lengths_that_the_model_takes_are_asked(most: int) -> None:
    found = recall.build_recall_texts(_count, most, FILLER)
    lengths = [n for n in ROWS["lengths"] if n <= most]
    assert [of for of, _, _ in found] == [
        f"{n} tokens, depth {depth:g}" for n in lengths for depth in ROWS["depths"]
    ]


def test_a_text_has_its_fact_once_at_its_depth_and_the_question_last() -> None:
    facts = {row["answer"]: row for row in ROWS["facts"]}
    assert len(facts) == len(ROWS["facts"]), "two facts have one answer"
    assert ROWS["answer"] == ANSWERED
    for of, text, answer in recall.build_recall_texts(_count, 9000, FILLER):
        length, depth = int(of.split()[0]), float(of.split()[-1])
        assert length / 2 < _count(text) <= length - ANSWERED, of
        assert text.count(answer) == 1 and text.count(facts[answer]["fact"]) == 1, of
        assert text.endswith(facts[answer]["question"])
        assert abs(text.index(answer) / len(text) - depth) < 0.15, of
        assert sum(row["fact"] in text for row in facts.values()) == 1 + recall.DISTRACTORS


def test_nothing_is_asked_without_filler_or_facts_that_fit() -> None:
    assert recall.build_recall_texts(_count, 9000, []) == []
    assert recall.build_recall_texts(lambda text: 300 + _count(text), 256, FILLER) == []


class Short:
    """Stands in for an engine that is built for less than its model takes, and says nothing."""

    vocab_size, tie = 2048, 0.0

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.asked: list[int] = []

    def generate(self, prompts: Sequence[Sequence[int]], most: int, ends: Any, **_: Any) -> list[list[int]]:
        self.asked = [len(p) for p in prompts]
        return [[] for _ in prompts]


def test_an_engine_is_asked_what_it_takes(model: Path) -> None:
    from enginix.errors import GateError
    from enginix.evaluation.judgement import quality
    from enginix.evaluation.reference_answers import hf, material
    from enginix.evaluation.reference_answers.answers import ReferenceAnswers

    tokenizer = hf.TransformersTokenizer(model)
    asked = material.load_material(tokenizer, 2048, 2048)
    assert asked.recalls and max(len(q.tokens) for q in asked.recalls) + ANSWERED <= 2048
    assert material.load_material(tokenizer, 2048, 200).recalls == ()
    told = tuple(tuple(tokenizer.encode(f"It is {q.answer}.")) for q in asked.recalls)
    answers = ReferenceAnswers({}, "", frozenset({2}), (), (), (), (), recalls=told)
    engine: Any = Short(600)
    outcome = quality.judge_context(engine, asked, answers, tokenizer, {"share": 0.5})
    assert not outcome.passed and outcome.detail["score"] == 0
    assert outcome.detail["questions"] == len(engine.asked) == 2 * len(ROWS["depths"])
    assert max(engine.asked) + ANSWERED <= 600 and outcome.detail["longest"] == max(engine.asked)
    with pytest.raises(GateError, match="accepts 100 tokens"):
        quality.judge_context(Short(100), asked, answers, tokenizer, {"share": 0.5})  # type: ignore[arg-type]
    nothing = replace(answers, recalls=((2,),) * len(asked.recalls))
    with pytest.raises(GateError, match="leave the gate context out"):
        quality.judge_context(engine, asked, nothing, tokenizer, {"share": 0.5})


class Counting(Short):
    """Stands in for a model that finds the facts of some texts; says which texts it was asked."""

    def __init__(self, answers: dict[tuple[int, ...], list[int]]) -> None:
        super().__init__(2048)
        self.answers, self.texts = answers, list[tuple[int, ...]]()

    def generate(self, prompts: Sequence[Sequence[int]], most: int, ends: Any, **_: Any) -> list[list[int]]:
        self.texts += map(tuple, prompts)
        return [self.answers.get(tuple(p), []) for p in prompts]


@pytest.mark.parametrize("number", [None, 0, 3])
def test_long_texts_are_asked_of_a_model_that_finds_facts_in_short_ones(
    model: Path, number: int | None
) -> None:
    from enginix.evaluation.reference_answers import hf, material
    from enginix.evaluation.reference_answers.answers import _ask_recalls

    tokenizer = hf.TransformersTokenizer(model)
    texts = material.load_material(tokenizer, 2048, 2048).recalls
    right = {} if number is None else {texts[number].tokens: tokenizer.encode(texts[number].answer)}
    subject: Any = Counting(right)
    replies = _ask_recalls(subject, texts, frozenset({2}), tokenizer)
    assert len(replies) == len(texts) == 16
    assert [bool(reply) for reply in replies] == [n == number for n in range(len(texts))]
    assert subject.texts == [q.tokens for q in texts[: 4 if number is None else 16]]
