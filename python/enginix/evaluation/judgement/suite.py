"""Choose the gates of a checkpoint and their bounds, and run them; they fail closed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from enginix.errors import GateError, describe_failure
from enginix.evaluation.judgement import model_files, model_weights, positions, quality
from enginix.evaluation.judgement.gate_names import list_gates, resolve_bounds
from enginix.evaluation.judgement.outcome import GateOutcome
from enginix.evaluation.reference_answers.answers import (
    LAYERS_OF,
    Passage,
    ReferenceAnswers,
    move_passages,
    require_same_material,
    score_texts,
)
from enginix.evaluation.reference_answers.material import GateTokenizer, Material, require_same_tokens
from enginix.evaluation.reference_answers.subject import Subject
from enginix.progress import track_step
from enginix.reference import layout
from enginix.reference.executor_config import ExecutorConfig
from enginix.reference.quantization import MIXED
from enginix.tables import load_table

LOGITS = "logits"
SMOKE, CONTEXT, TASK = "smoke", "context", "task"
EVERY = 3  # one passage in so many is computed with weights alone quantized
COMPARED = (model_files.NAME, model_weights.NAME)  # judged without asking anything
GATES = list_gates("checkpoint")


@dataclass(frozen=True)
class JudgedEngine:
    """An engine to judge.

    Attributes:
        config: of its checkpoint.
        tokenizer: the engine's own.
        ends: tokens that end an answer, by the engine's own files; None takes the model's.
        without_rounding: enters a block in which only weights are quantized.
    """

    subject: Subject
    tokenizer: GateTokenizer
    config: ExecutorConfig
    ends: frozenset[int] | None = None
    without_rounding: Callable[[], AbstractContextManager[None]] | None = None

    @functools.cached_property
    def runs(self) -> EngineRuns:
        """Return what the engine was asked."""
        return EngineRuns(self.subject, self.ends)


@dataclass(frozen=True)
class ComparedFiles:
    """What the gates ``files`` and ``weights`` compare, without asking anything.

    Attributes:
        engine_files: directory of the engine's tokenizer.
        model_files: the model's directory, or the copy beside the reference's answers.
        end_tokens: those of the engine's manifest; None where it names none.
        checkpoint: directory of the checkpoint.
        models: what a model is to the checkpoint → its directory.
    """

    engine_files: Path
    model_files: Path
    end_tokens: tuple[int, ...] | None
    checkpoint: Path
    models: Mapping[str, Path]


class EngineRuns:
    """An engine that is asked each thing once, with its own end tokens, for all gates that need it.

    Attributes:
        vocab_size, max_length, tie: as of the subject.
    """

    def __init__(self, subject: Subject, ends: frozenset[int] | None) -> None:
        self.subject, self.ends = subject, ends
        self.vocab_size, self.max_length, self.tie = subject.vocab_size, subject.max_length, subject.tie
        self._answers: dict[tuple[Any, ...], list[list[int]]] = {}

    def logits(self, texts: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        return self.subject.logits(texts)

    def logits_at(self, text: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        return self.subject.logits_at(text, positions)

    def hidden(self, text: Sequence[int]) -> list[torch.Tensor]:
        return self.subject.hidden(text)

    def generate(
        self, prompts: Sequence[Sequence[int]], most: int, ends: frozenset[int], *, together: bool = True
    ) -> list[list[int]]:
        """Return the engine's answers; the same question again has the same answers."""
        key = (tuple(map(tuple, prompts)), most, together)
        if key not in self._answers:
            self._answers[key] = self.generate_again(prompts, most, ends, together=together)
        return self._answers[key]

    def generate_again(
        self, prompts: Sequence[Sequence[int]], most: int, ends: frozenset[int], *, together: bool = True
    ) -> list[list[int]]:
        """Ask the engine, whatever it has answered before."""
        return self.subject.generate(
            prompts, most, ends if self.ends is None else self.ends, together=together
        )


def checkpoint_format_row(config: ExecutorConfig) -> str:
    """Return the row of default bounds for a checkpoint: the coarsest number format in it."""
    rows = load_table("gates")["formats"]
    algorithms = set(config.quantization.algorithms - {MIXED}) | {"NO_QUANT"}
    if config.quantization.kv_cache is not None:
        algorithms.add("FP8")
    return max(algorithms, key=list(rows).index)


def is_unquantized(config: ExecutorConfig) -> bool:
    """Return whether neither weights nor KV cache of a checkpoint are quantized."""
    return not config.quantization.algorithms and config.quantization.kv_cache is None


def default_checkpoint_gates(config: ExecutorConfig) -> tuple[str, ...]:
    """Return the default gates: all but those that another one implies for the number format."""
    implied = ("coverage", "activations", "invariance") if is_unquantized(config) else (LOGITS,)
    return tuple(gate for gate in GATES if gate not in implied)


def resolve_checkpoint_bounds(
    config: ExecutorConfig, requested_gates: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return each requested gate's bounds: the table's for the number format, with the requested changes.

    Raises:
        UsageError: as :func:`gate_names.resolve_bounds`.
    """
    rows = load_table("gates")["formats"][checkpoint_format_row(config)]["bounds"]
    rows = {LOGITS: {"tolerance": None}, **rows}
    return resolve_bounds(requested_gates, GATES, lambda gate: rows.get(gate, {}))


def explain_bounds(config: ExecutorConfig) -> dict[str, str]:
    """Return the reason of the default bounds of a checkpoint's number format."""
    row = load_table("gates")["formats"][checkpoint_format_row(config)]
    return {"format": checkpoint_format_row(config), "reason": row["reason"]}


def judge_coverage(config: ExecutorConfig, bound: Mapping[str, Any]) -> GateOutcome:
    """Judge whether every quantizable matrix is quantized; the bounds name the exceptions."""
    spared = []
    for layer in range(config.layers):
        for linear in (*layout.attention_linears(config, layer), *layout.mlp_linears(config, layer)):
            if layout.find_linear_algorithm(config, linear) is None:
                spared.append(linear.name)
    quantized = bool(config.quantization.algorithms)
    extra = [name for name in spared if name not in bound["unquantized"]] if quantized else []
    count = 0 if not quantized else config.layers
    summary = (
        f"{len(extra)} matrices are not quantized, for instance {extra[0]}"
        if extra
        else f"all matrices of {count} layers are quantized" + (f" but {len(spared)} named" if spared else "")
    )
    if not quantized:
        return GateOutcome("coverage", True, "no quantized weights", dict(bound))
    return GateOutcome("coverage", not extra, summary, {**bound, "spared": spared})


def measure_layer_errors(subject: Subject, material: Material, answers: ReferenceAnswers) -> list[float]:
    """Return the relative error of each layer's output on the first passage's first positions."""
    hidden_states = subject.hidden(material.passages[0].tokens[:LAYERS_OF])
    if len(hidden_states) != len(answers.hidden):
        raise GateError(f"{len(hidden_states)} layers, the reference has {len(answers.hidden)}")
    return [
        quality.round_figure(float((a.cpu().double() - b.double()).norm() / b.double().norm()))
        for a, b in zip(hidden_states, answers.hidden, strict=True)
    ]


def compare_model(
    compared: ComparedFiles, gate_bounds: Mapping[str, Mapping[str, Any]]
) -> tuple[GateOutcome, ...]:
    """Return the outcomes of the requested gates that ask nothing; one that cannot be decided has failed."""
    outcomes = []
    for name in COMPARED:
        if name in gate_bounds:
            with track_step(f"gate {name}"):
                outcomes.append(_compare_part(name, compared, dict(gate_bounds[name])))
    return tuple(outcomes)


def _compare_part(name: str, compared: ComparedFiles, bounds: dict[str, Any]) -> GateOutcome:
    try:
        if name == model_files.NAME:
            return model_files.judge_files(
                compared.engine_files, compared.model_files, compared.end_tokens, bounds
            )
        if not compared.models:
            raise GateError(
                "the model's weights are not here",
                fix="pass --model DIR, the model that the checkpoint was converted from; for a quantized one "
                "also --original DIR, the model before quantization; or leave the gate out with --gates",
            )
        return model_weights.judge_weights(compared.checkpoint, compared.models, bounds)
    except Exception as e:
        return GateOutcome.not_run(name, e)


def run_gates(
    load: Callable[[], JudgedEngine],
    reference: GateTokenizer,
    material: Material,
    answers: ReferenceAnswers,
    gate_bounds: Mapping[str, Mapping[str, Any]],
) -> tuple[tuple[GateOutcome, ...], dict[str, Any]]:
    """Return the outcomes of all gates that ask an engine, but ``logits``, and the evidence that none has.

    A judged engine never raises: a gate that cannot be decided has failed.

    Args:
        reference: the model's tokenizer, by which ``material`` was made.
        gate_bounds: gate → bounds (:func:`resolve_checkpoint_bounds`).

    Raises:
        GateError: the reference's answers are to other questions than ``material``.
    """
    require_same_material(answers, material)
    names = [name for name in GATES if name in gate_bounds and name not in (LOGITS, *COMPARED)]
    try:
        engine = load()
        require_same_tokens(engine.tokenizer, reference, material)
        if engine.subject.vocab_size <= max(t for p in material.passages for t in p.tokens):
            raise GateError("the engine's vocabulary is smaller than the model's")
    except Exception as e:
        return tuple(GateOutcome.not_run(name, e) for name in names), {}
    subject = engine.runs
    scored = ScoredPassages(subject, material, answers)
    runs: dict[str, Callable[[Any], GateOutcome]] = {
        "coverage": lambda b: judge_coverage(engine.config, b),
        SMOKE: lambda b: quality.judge_smoke(subject, material, answers, engine.tokenizer, b),
        "positions": lambda b: positions.judge_positions(subject, material, answers, b),
        "agreement": lambda b: quality.judge_agreement(*scored.get(), answers, b),
        "activations": lambda b: judge_rounding(engine, scored, b),
        "perplexity": lambda b: quality.judge_perplexity(scored.get()[0], answers, b),
        "task": lambda b: quality.judge_task(subject, material, answers, engine.tokenizer, b),
        "context": lambda b: quality.judge_context(subject, material, answers, engine.tokenizer, b),
        "invariance": lambda b: quality.judge_invariance(
            subject, material, answers, b, subject.generate_again
        ),
    }
    outcomes = []
    for name in names:
        try:
            with track_step(f"gate {name}"):
                outcomes.append(runs[name](dict(gate_bounds[name])))
        except Exception as e:
            outcomes.append(GateOutcome.not_run(name, e))
    try:
        extra_evidence: dict[str, Any] = {"layerErrors": measure_layer_errors(subject, material, answers)}
    except Exception as e:
        extra_evidence = {"layerErrors": describe_failure(e)}
    return tuple(outcomes), extra_evidence


def judge_rounding(engine: JudgedEngine, scored: ScoredPassages, bounds: dict[str, Any]) -> GateOutcome:
    """Judge what rounded activations and cache add (:func:`quality.judge_activations`)."""
    if not engine.config.quantization.algorithms:
        return GateOutcome("activations", True, "no quantized weights", bounds)
    if engine.without_rounding is None:
        raise GateError("the engine cannot leave its activations unrounded")
    numbers = range(0, len(scored.material.passages), EVERY)
    with engine.without_rounding():
        unrounded = scored.measure(numbers)
    kl = [scored.get()[1][n] for n in numbers]
    has_cache = engine.config.quantization.kv_cache is not None
    return quality.judge_activations(kl, unrounded, bounds, has_cache=has_cache)


class ScoredPassages:
    """The engine's distributions on the evaluation text, computed once for the gates that need them."""

    def __init__(self, subject: Subject, material: Material, answers: ReferenceAnswers) -> None:
        self.subject, self.material, self.answers = subject, material, answers
        self._scores: tuple[Sequence[Passage], Sequence[torch.Tensor]] | None = None

    def get(self) -> tuple[Sequence[Passage], Sequence[torch.Tensor]]:
        if self._scores is None:
            reference_passages: list[Passage] = []

            def divergence(number: int, logs: torch.Tensor) -> torch.Tensor:
                if not reference_passages:
                    reference_passages.extend(move_passages(self.answers.passages, logs.device))
                return quality.compute_divergence(logs, reference_passages[number])

            texts = [p.tokens for p in self.material.passages]
            self._scores = score_texts(self.subject, texts, divergence, quality.TOP_K)
        return self._scores

    def measure(self, numbers: Sequence[int]) -> list[torch.Tensor]:
        """Return the engine's divergence on some passages as it computes now."""
        reference_passages = [self.answers.passages[n] for n in numbers]

        def divergence(number: int, logs: torch.Tensor) -> torch.Tensor:
            (passage,) = move_passages([reference_passages[number]], logs.device)
            return quality.compute_divergence(logs, passage)

        texts = [self.material.passages[n].tokens for n in numbers]
        return score_texts(self.subject, texts, divergence, quality.TOP_K)[1]
