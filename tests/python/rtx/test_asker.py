"""Asking an engine: answers and scores are the reference executor's, and a faulty executor has others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from enginix.errors import GateError
from enginix.evaluation.engine_judgement import answer_record
from enginix.evaluation.engine_protocol.engine_questions import (
    EngineQuestions,
    TokenizedText,
    write_engine_questions,
)
from enginix.kinds.gating.gate_asking import GateReport
from enginix.kinds.rtx.step_inputs import StepInputs
from enginix.kinds.rtx_serving import rtx_asker
from enginix.kinds.rtx_serving.interpreter_backend import InterpreterBackend
from enginix.reference import Executor

EVERY = ("smoke", "greedy", "task", "context", "invariance", "agreement", "perplexity")
VOCABULARY = 2048


def make_text(name: str, count: int) -> TokenizedText:
    return TokenizedText(name, tuple((37 * i + 11 * count) % 400 for i in range(count)), None)


QUESTIONS = EngineQuestions(
    material="m",
    vocab_size=VOCABULARY,
    ends=(),
    golden=0,
    prompts=(make_text("a", 5), make_text("b", 16), make_text("c", 34)),
    questions=(make_text("d", 9),),
    recalls=(make_text("e", 18),),
    passages=(make_text("f", 33), make_text("g", 17)),
    continued=3,
    answered=2,
    kept=8,
    next=4,
)


@pytest.fixture(scope="module")
def executor(tiny: Path) -> Executor:
    return Executor.load(tiny)


@pytest.fixture
def questions(tmp_path: Path, executor: Executor) -> EngineQuestions:
    chosen = replace(QUESTIONS, vocab_size=executor.config.vocab_size)
    write_engine_questions(chosen, tmp_path)
    return chosen


def test_answers_and_scores_are_the_executors(
    served: Path, tiny: Path, executor: Executor, questions: EngineQuestions, tmp_path: Path
) -> None:
    backend = InterpreterBackend(served, tiny)
    times = rtx_asker.ask_rtx_engine(served, tmp_path, tmp_path / "said", backend, EVERY)
    answers = answer_record.read_engine_answers(tmp_path / "said")
    answer_record.require_same_questions(answers, questions)
    for name, texts, most in (
        ("batch", questions.prompts, questions.continued),
        ("again", questions.prompts, questions.continued),
        ("alone", questions.prompts, questions.continued),
        ("replies", questions.questions, questions.answered),
        ("recalls", questions.recalls, questions.answered),
    ):
        for text, answer in zip(texts, answers.runs[name], strict=True):
            assert answer is not None and answer.finish == "length"
            assert list(answer.tokens) == executor.greedy(text.tokens, most), (name, text.id)
    for text, passage in zip(questions.passages, answers.passages, strict=True):
        logs = executor.forward([text.tokens])[0][:-1].log_softmax(-1)
        expected = logs.gather(1, torch.tensor(text.tokens[1:])[:, None])[:, 0]
        torch.testing.assert_close(passage.text_logs, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(passage.logs, logs.topk(8).values, atol=1e-4, rtol=1e-4)
    for number, text in enumerate(questions.prompts):
        whole = [*text.tokens, *answers.runs["batch"][number].tokens]  # type: ignore[union-attr]
        logs = executor.forward([whole])[0].log_softmax(-1)[len(text.tokens) - 1 : -1]
        torch.testing.assert_close(answers.next[number].logs, logs.topk(4).values, atol=1e-4, rtol=1e-4)
        assert answers.next[number].ids[:, 0].tolist() == whole[len(text.tokens) :]
    assert times.steps > 0 and times.first_step > 0
    assert answers.by["executor"].startswith("enginix's interpreter")


def test_what_no_gate_needs_is_not_asked(
    served: Path, tiny: Path, questions: EngineQuestions, tmp_path: Path
) -> None:
    backend = InterpreterBackend(served, tiny)
    rtx_asker.ask_rtx_engine(served, tmp_path, tmp_path / "said", backend, ("smoke", "greedy"))
    answers = answer_record.read_engine_answers(tmp_path / "said")
    answer_record.require_same_questions(answers, questions)
    for name in ("again", "alone", "recalls"):
        assert set(answers.runs[name]) == {None}
    assert not answers.passages and "passages" in answers.absent


class FaultyBackend(InterpreterBackend):
    """An interpreter that gets other inputs than the loop gives it."""

    fault: Callable[[StepInputs], StepInputs]

    def run_step(self, inputs: StepInputs) -> torch.Tensor:
        return super().run_step(type(self).fault(inputs))


FAULTS: dict[str, Callable[[StepInputs], StepInputs]] = {
    "cache index": lambda i: {**i, "write_indices": (i["write_indices"] - 1).clamp(min=0)},
    "last token": lambda i: {**i, "last_indices": (i["last_indices"] - 1).clamp(min=0)},
    "slots exchanged": lambda i: {**i, "input_ids": i["input_ids"].roll(1, 0)},
    "padded on the left": lambda i: {**i, "input_ids": i["input_ids"].flip(1)},
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_an_executor_change_answers(
    served: Path, tiny: Path, executor: Executor, questions: EngineQuestions, tmp_path: Path, name: str
) -> None:
    faulty = type("Faulty", (FaultyBackend,), {"fault": staticmethod(FAULTS[name])})
    rtx_asker.ask_rtx_engine(served, tmp_path, tmp_path / "said", faulty(served, tiny), ("smoke",))
    answers = answer_record.read_engine_answers(tmp_path / "said")
    expected = [executor.greedy(text.tokens, questions.continued) for text in questions.prompts]
    assert [list(answer.tokens) for answer in answers.runs["batch"] if answer] != expected


def test_an_engine_that_fails_is_an_error_and_leaves_no_answers(
    served: Path, tiny: Path, questions: EngineQuestions, tmp_path: Path
) -> None:
    backend: Any = InterpreterBackend(served, tiny)
    run_step, steps = backend.run_step, list[int]()

    def fail_later(inputs: StepInputs) -> torch.Tensor:
        steps.append(1)
        if len(steps) > 3:
            raise RuntimeError("a kernel was lost")
        return run_step(inputs)

    backend.run_step = fail_later
    with pytest.raises(GateError, match="a kernel was lost"):
        rtx_asker.ask_rtx_engine(served, tmp_path, tmp_path / "said", backend, EVERY)
    assert not (tmp_path / "said").exists()


def test_a_report_says_what_executed() -> None:
    on_gpu = GateReport(Path(), {"gpu": "NVIDIA GeForce RTX 4090", "sm": 89}).list_lines([])
    assert on_gpu[0].startswith("please report these lines") and "  sm: 89" in on_gpu
    interpreted = GateReport(Path(), {"executor": "…"}).list_lines([])
    assert "this says nothing of NVIDIA's runtime" in interpreted[0]
