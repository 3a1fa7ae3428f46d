"""The recorded answers of an engine in its own runtime, and a subject that answers from this record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from enginix.errors import GateError
from enginix.evaluation.engine_protocol.engine_questions import EngineQuestions
from enginix.evaluation.reference_answers.answers import Passage
from enginix.files import refuse_damage

FORMAT = 1
FILE, TENSORS = "said.json", "said.safetensors"
RUNS = ("batch", "again", "alone", "replies", "recalls")
FINISHES = ("stop", "length")
LONGER = "raise maxInputLen and maxSeqLen (maxKvCacheCapacity for edgellm), or leave the gate out"


@dataclass(frozen=True)
class GreedyAnswer:
    """A greedy answer; ``finish`` is ``stop`` or ``length``."""

    tokens: tuple[int, ...]
    finish: str

    def ended(self, ends: frozenset[int]) -> list[int]:
        """Return the tokens with their end token, which some runtimes leave out."""
        if self.finish == "stop" and ends and (not self.tokens or self.tokens[-1] not in ends):
            return [*self.tokens, min(ends)]
        return list(self.tokens)


@dataclass(frozen=True)
class NextTokenLogs:
    """The most likely tokens of each generated position.

    Attributes:
        ids: int32 [G, K], best first.
        logs: float32 [G, K], natural logarithms of their probabilities.
    """

    ids: torch.Tensor
    logs: torch.Tensor


@dataclass(frozen=True)
class EngineAnswers:
    """All answers of an engine.

    Attributes:
        kind: of the engine.
        by: the software that executed it, with versions.
        runs: name → answers; ``None`` where a prompt does not fit the engine.
        passages: distributions on the first positions of each text, within the engine's limit; empty
            where the runtime gives none.
        next: prompt's number → distributions of its answer in the run ``batch``.
        absent: name of missing evidence → reason.
        limit: most tokens of prompt and answer together.
        longest: most tokens of a prompt.
        misread: prompts that the runtime's own tokenizer tokenizes differently than the model's.
    """

    material: str
    kind: str
    by: dict[str, Any]
    runs: dict[str, tuple[GreedyAnswer | None, ...]]
    passages: tuple[Passage, ...]
    next: dict[int, NextTokenLogs]
    limit: int
    longest: int
    absent: dict[str, str] = field(default_factory=dict)
    misread: tuple[str, ...] = ()


def read_engine_answers(directory: Path) -> EngineAnswers:
    """Read said.json and said.safetensors; the gates refuse NaN in them.

    Raises:
        GateError: missing, damaged, or of another format.
    """
    what = "the engine's answers cannot be read"
    with refuse_damage(GateError, directory, "ask the engine again", what=what, also=(SafetensorError,)):
        raw = json.loads((directory / FILE).read_text("utf-8"))
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']}, not {FORMAT}")
        tensors = load_file(directory / TENSORS)
        passages = []
        for n, length in enumerate(raw["passages"]):
            passage = Passage.read(tensors, str(n))
            if passage.ids.shape != passage.logs.shape or {len(passage.ids), len(passage.text_logs)} != {
                length - 1
            }:
                raise ValueError(f"passage {n} has another shape than {FILE} says")
            passages.append(passage)
        following = {}
        for name in tensors:
            if name.startswith("next.") and name.endswith(".ids"):
                following[int(name.split(".")[1])] = NextTokenLogs(
                    tensors[name], tensors[f"{name[:-4]}.logs"]
                )
        return EngineAnswers(
            str(raw["material"]),
            str(raw["kind"]),
            dict(raw["by"]),
            {run: tuple(map(_parse_recorded_answer, raw["runs"][run])) for run in RUNS},
            tuple(passages),
            following,
            int(raw["limit"]),
            int(raw["longest"]),
            {str(k): str(v) for k, v in raw["absent"].items()},
            tuple(map(str, raw.get("misread", ()))),
        )


def _parse_recorded_answer(raw: Any) -> GreedyAnswer | None:
    if raw is None:
        return None
    tokens = tuple(raw["tokens"])
    if (
        not all(isinstance(t, int) and not isinstance(t, bool) for t in tokens)
        or raw["finish"] not in FINISHES
    ):
        raise ValueError(f"an answer is {raw!r}"[:200])
    return GreedyAnswer(tokens, raw["finish"])


def require_same_questions(engine_answers: EngineAnswers, question_set: EngineQuestions) -> None:
    """Refuse answers to other questions.

    Raises:
        GateError: other texts, another tokenizer, or missing answers.
    """
    if engine_answers.misread:
        raise GateError(
            f"the engine's tokenizer is not the model's: {engine_answers.misread[0]} "
            f"({len(engine_answers.misread)} prompts)",
            fix="build the engine again from the model's own tokenizer",
        )
    if engine_answers.material != question_set.material:
        raise GateError(
            "the engine's answers are to other questions, or of another tokenizer", fix="ask the engine again"
        )
    for run in RUNS:
        expected_count = len(
            {"replies": question_set.questions, "recalls": question_set.recalls}.get(
                run, question_set.prompts
            )
        )
        if len(engine_answers.runs[run]) != expected_count:
            raise GateError(
                f"{len(engine_answers.runs[run])} answers in run {run}, {expected_count} were requested"
            )


class RecordedSubject:
    """A subject that repeats recorded answers, for gates that need no others.

    Attributes:
        max_length: prompt and answer together.
        tie: two logits this close may change places.
    """

    def __init__(self, engine_answers: EngineAnswers, question_set: EngineQuestions, tie: float) -> None:
        self.vocab_size, self.tie = question_set.vocab_size, tie
        self.max_length = min(engine_answers.limit, engine_answers.longest + question_set.answered)
        self._said = {
            text.tokens: answer
            for run, texts in (
                ("batch", question_set.prompts),
                ("replies", question_set.questions),
                ("recalls", question_set.recalls),
            )
            for text, answer in zip(texts, engine_answers.runs[run], strict=True)
        }

    def generate(
        self, prompts: Sequence[Sequence[int]], most: int, ends: frozenset[int], *, together: bool = True
    ) -> list[list[int]]:
        """Return the recorded answers; ``most`` must be the recorded limit.

        Raises:
            GateError: a prompt that was not asked, or that does not fit the engine.
        """
        out = []
        for prompt in prompts:
            answer = self._said.get(tuple(prompt))
            if answer is None:
                raise GateError(
                    f"a prompt of {len(prompt)} tokens does not fit the engine's limits, or was not asked",
                    fix=LONGER,
                )
            out.append(answer.ended(ends))
        return out

    def logits(self, texts: Sequence[Sequence[int]]) -> Any:
        raise GateError("recorded answers of an engine have no logits")

    hidden = logits
