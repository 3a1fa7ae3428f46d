"""Judges checkpoints of tiny-qwen3 by the gates of quality, or any subject in an engine's place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from enginix.evaluation.judgement import suite
from enginix.evaluation.judgement.outcome import GateOutcome
from enginix.evaluation.reference_answers import hf
from enginix.evaluation.reference_answers.answers import ReferenceAnswers
from enginix.evaluation.reference_answers.material import Material
from enginix.evaluation.reference_answers.subject import ExecutorSubject
from enginix.reference import config
from enginix.reference.executor import Executor

ENDS = frozenset({2})
NOT_ASKED = (suite.LOGITS, "context", *suite.COMPARED)  # of tiny-qwen3, which finds no planted facts


class Judge:
    """Runs the suite on a checkpoint, or on any subject in its place."""

    def __init__(
        self, tokenizer: hf.TransformersTokenizer, material: Material, answers: ReferenceAnswers
    ) -> None:
        self.tokenizer, self.material, self.answers = tokenizer, material, answers

    def __call__(
        self,
        checkpoint: Path,
        *gates: str,
        wrap: Callable[[Any], Any] = lambda subject: subject,
        tokenizer: Any = None,
        **changes: Any,
    ) -> dict[str, GateOutcome]:
        def load() -> suite.JudgedEngine:
            executor = Executor.load(checkpoint, dtype="float32")
            return suite.JudgedEngine(
                wrap(ExecutorSubject(executor)),
                tokenizer or self.tokenizer,
                executor.config,
                without_rounding=executor.without_rounding,
            )

        wanted = suite.resolve_checkpoint_bounds(
            config.read_executor_config(checkpoint),
            {g: {} for g in gates or suite.GATES if g not in NOT_ASKED},
        )
        for gate, bounds in changes.items():
            wanted[gate] |= bounds
        outcomes, _ = suite.run_gates(load, self.tokenizer, self.material, self.answers, wanted)
        return {outcome.gate: outcome for outcome in outcomes}
