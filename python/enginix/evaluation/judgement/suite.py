"""Choose the gates of a checkpoint and their bounds, and run them; they fail closed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from enginix.errors import EnginixError, GateError, UsageError
from enginix.evaluation.judgement import quality
from enginix.evaluation.judgement.gate_names import list_gates
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
from enginix.reference import layout
from enginix.reference.config import ExecutorConfig
from enginix.reference.quantization import MIXED
from enginix.tables import load_table

LOGITS = "logits"
LONG = 4096  # tokens of context from which a default gate looks for facts planted far back
GATES = list_gates("checkpoint")


@dataclass(frozen=True)
class JudgedEngine:
    """An engine to judge.

    Attributes:
        config: of its checkpoint.
        tokenizer: the engine's own.
    """

    subject: Subject
    tokenizer: GateTokenizer
    config: ExecutorConfig


def checkpoint_format_row(config: ExecutorConfig) -> str:
    """Return the row of default bounds for a checkpoint: the coarsest number format in it."""
    rows = load_table("gates")["formats"]
    algorithms = set(config.quantization.algorithms - {MIXED}) | {"NO_QUANT"}
    if config.quantization.kv_cache is not None:
        algorithms.add("FP8")
    return max(algorithms, key=list(rows).index)


def default_checkpoint_gates(config: ExecutorConfig) -> tuple[str, ...]:
    """Return the default gates: those of function for exact formats, those of quality for others.

    The gate for planted facts is added for models of long context.
    """
    quantization = config.quantization
    plain = not quantization.algorithms and quantization.kv_cache is None
    spared = (LOGITS,) if config.context >= LONG else (LOGITS, "context")
    return (LOGITS,) if plain else tuple(g for g in GATES if g not in spared)


def resolve_checkpoint_bounds(
    config: ExecutorConfig, requested_gates: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return each requested gate's bounds: the table's for the number format, with the requested changes.

    Args:
        requested_gates: gate → bounds to change, for instance ``{"perplexity": {"ratio": 1.02}}``.

    Raises:
        UsageError: no such gate or bound, or a bound that is not a number.
    """
    name = checkpoint_format_row(config)
    rows: Mapping[str, Any] = load_table("gates")["formats"][name]["bounds"]
    out = {}
    for gate, overrides in requested_gates.items():
        if gate not in GATES:
            raise UsageError(f"no gate {gate!r}", fix=f"there are: {', '.join(GATES)}")
        known = {LOGITS: {"tolerance": None}}.get(gate, rows.get(gate, {}))
        for key, value in overrides.items() if isinstance(overrides, Mapping) else [(None, overrides)]:
            if key not in known:
                raise UsageError(
                    f"gate {gate} has no bound {key!r}", fix=f"it has: {', '.join(known) or 'none'}"
                )
            listed = isinstance(known[key], list)
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if listed != isinstance(value, list) or not (listed or (number and value > 0)):
                raise UsageError(f"bound {key} of gate {gate} is {value!r}", fix="a positive number")
        out[gate] = {**rows.get(gate, {}), **overrides}
    return out


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


def run_gates(
    load: Callable[[], JudgedEngine],
    reference: GateTokenizer,
    material: Material,
    answers: ReferenceAnswers,
    gate_bounds: Mapping[str, Mapping[str, Any]],
) -> tuple[tuple[GateOutcome, ...], dict[str, Any]]:
    """Return the outcomes of all requested gates but ``logits``, and the evidence that no single gate has.

    A judged engine never raises: a gate that cannot be decided has failed.

    Args:
        reference: the model's tokenizer, by which ``material`` was made.
        gate_bounds: gate → bounds (:func:`resolve_checkpoint_bounds`).

    Raises:
        GateError: the reference's answers are to other questions than ``material``.
    """
    require_same_material(answers, material)
    names = [name for name in GATES if name in gate_bounds and name != LOGITS]
    try:
        engine = load()
        require_same_tokens(engine.tokenizer, reference, material)
        if engine.subject.vocab_size <= max(t for p in material.passages for t in p.tokens):
            raise GateError("the engine's vocabulary is smaller than the model's")
    except Exception as e:
        return tuple(_failed_gate(name, e) for name in names), {}
    subject, scored = engine.subject, ScoredPassages(engine.subject, material, answers)
    runs: dict[str, Callable[[Any], GateOutcome]] = {
        "coverage": lambda b: judge_coverage(engine.config, b),
        "smoke": lambda b: quality.judge_smoke(subject, material, answers, engine.tokenizer, b),
        "agreement": lambda b: quality.judge_agreement(*scored.get(), answers, b),
        "perplexity": lambda b: quality.judge_perplexity(scored.get()[0], answers, b),
        "task": lambda b: quality.judge_task(subject, material, answers, engine.tokenizer, b),
        "context": lambda b: quality.judge_context(subject, material, answers, engine.tokenizer, b),
        "invariance": lambda b: quality.judge_invariance(subject, material, answers, b),
    }
    outcomes = []
    for name in names:
        try:
            outcomes.append(runs[name](dict(gate_bounds[name])))
        except Exception as e:
            outcomes.append(_failed_gate(name, e))
    try:
        extra_evidence: dict[str, Any] = {"layerErrors": measure_layer_errors(subject, material, answers)}
    except Exception as e:
        extra_evidence = {"layerErrors": _error_text(e)}
    return tuple(outcomes), extra_evidence


def _error_text(e: Exception) -> str:
    return e.what if isinstance(e, EnginixError) else f"{type(e).__name__}: {e}"


def _failed_gate(gate: str, e: Exception) -> GateOutcome:
    return GateOutcome(gate, False, f"could not be run: {_error_text(e)}", {"error": _error_text(e)})


class ScoredPassages:
    """The engine's distributions on the evaluation text, computed once for two gates."""

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
            self._scores = score_texts(self.subject, texts, divergence)
        return self._scores
