"""Engines that answer wrongly are rejected, each by the gates that can see it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint_judge import Judge
from enginix.errors import GateError
from enginix.evaluation.judgement import run
from enginix.evaluation.reference_answers.subject import ExecutorSubject
from enginix.reference.executor import Executor


class RememberingSubject(ExecutorSubject):
    """A sound engine, which gives the answers that it gave before to the same questions."""

    def __init__(self, executor: Executor, remembered: dict[Any, list[list[int]]]) -> None:
        super().__init__(executor)
        self.remembered = remembered

    def generate(self, prompts: Any, most: int, ends: Any, *, together: bool = True) -> list[list[int]]:
        key = (tuple(map(tuple, prompts)), most, ends, together)
        if key not in self.remembered:
            self.remembered[key] = super().generate(prompts, most, ends, together=together)
        return copy.deepcopy(self.remembered[key])


class Wrapped:
    """A stand-in for an engine: behaves as another one, but for what a test changes."""

    def __init__(self, subject: ExecutorSubject) -> None:
        self.subject = subject
        self.vocab_size, self.max_length, self.tie = subject.vocab_size, subject.max_length, subject.tie
        self.calls = 0

    def logits(self, texts: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        return self.subject.logits(texts)

    def logits_at(self, text: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        return self.subject.logits_at(text, positions)

    def hidden(self, text: Sequence[int]) -> list[torch.Tensor]:
        return self.subject.hidden(text)

    def generate(self, prompts: Any, most: int, ends: Any, *, together: bool = True) -> list[list[int]]:
        self.calls += 1
        return self.subject.generate(prompts, most, ends, together=together)


class Silent(Wrapped):
    def generate(self, prompts: Any, most: int, ends: Any, *, together: bool = True) -> list[list[int]]:
        return [[] for _ in prompts]


class StopsAtOnce(Wrapped):
    def generate(self, prompts: Any, most: int, ends: Any, *, together: bool = True) -> list[list[int]]:
        return [[2] for _ in prompts]


class Nothing(Wrapped):
    def generate(self, prompts: Any, most: int, ends: Any, *, together: bool = True) -> list[list[int]]:
        return []


class Raising(Wrapped):
    def generate(self, prompts: Any, most: int, ends: Any, *, together: bool = True) -> list[list[int]]:
        raise ZeroDivisionError("sudden")

    def logits(self, texts: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        raise ZeroDivisionError("sudden")


class NotFinite(Wrapped):
    def logits(self, texts: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        for logits in self.subject.logits(texts):
            spoilt = logits.clone()
            spoilt[len(logits) // 2, 5] = float("nan")
            yield spoilt


class NeverStops(Wrapped):
    def generate(self, prompts: Any, most: int, ends: Any, *, together: bool = True) -> list[list[int]]:
        return self.subject.generate(prompts, most, frozenset(), together=together)


class Loops(Wrapped):
    def generate(self, prompts: Any, most: int, ends: Any, *, together: bool = True) -> list[list[int]]:
        return [[7, 8, 9] * (most // 3) for _ in prompts]


class Fickle(Wrapped):
    """Another answer each time it is asked."""

    def generate(self, prompts: Any, most: int, ends: Any, *, together: bool = True) -> list[list[int]]:
        found = super().generate(prompts, most, ends, together=together)
        found[3][1] = 100 + self.calls
        return found


class Crowded(Wrapped):
    """In a batch, the second half says what the first says."""

    def generate(self, prompts: Any, most: int, ends: Any, *, together: bool = True) -> list[list[int]]:
        found = super().generate(prompts, most, ends, together=together)
        half = len(found) // 2
        return found[:half] + found[:half] if together else found


class Forgetful(Wrapped):
    """Answers every fourth question with another's answer."""

    def generate(self, prompts: Any, most: int, ends: Any, *, together: bool = True) -> list[list[int]]:
        found = super().generate(prompts, most, ends, together=together)
        return [found[(n + 9) % len(found)] if n % 4 == 0 else answer for n, answer in enumerate(found)]


MISBEHAVIOUR: list[tuple[type[Wrapped], dict[str, str]]] = [
    (Silent, {"smoke": "empty answers", "task": "0 of", "invariance": "another token"}),
    (StopsAtOnce, {"smoke": "empty answers", "task": "0 of"}),
    (Nothing, {"smoke": "got none", "task": "could not be run", "invariance": "could not be run"}),
    (
        Raising,
        dict.fromkeys(
            ("smoke", "agreement", "perplexity", "task", "invariance"), "ZeroDivisionError: sudden"
        ),
    ),
    (NotFinite, {"agreement": "NaN", "perplexity": "NaN"}),
    (NeverStops, {"smoke": "answers stop|tokens after an end token"}),
    (Loops, {"smoke": "answers loop", "task": "0 of"}),
    (Fickle, {"invariance": "repeated"}),
    (Crowded, {"invariance": "alone"}),
    (Forgetful, {"task": "lost"}),
]


@pytest.fixture(scope="module")
def remembered() -> dict[Any, list[list[int]]]:
    """What the sound engine behind the misbehaving ones answered."""
    return {}


@pytest.mark.parametrize("kind,expected", MISBEHAVIOUR, ids=lambda v: getattr(v, "__name__", ""))
def test_misbehaving_engines_fail(
    little_judge: Judge,
    remembered: dict[Any, list[list[int]]],
    checkpoint: Path,
    kind: type[Wrapped],
    expected: dict[str, str],
) -> None:
    def wrap(subject: ExecutorSubject) -> Wrapped:
        return kind(RememberingSubject(subject.executor, remembered))

    found = little_judge(checkpoint, *expected, wrap=wrap)
    for gate, says in expected.items():
        assert not found[gate].passed, gate
        assert re.search(says, found[gate].summary), found[gate].summary
    with pytest.raises(GateError):
        run.require_gates_passed(tuple(found.values()))
