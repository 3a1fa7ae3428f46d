"""Which gates, with which bounds; and all of them run, failing closed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from enginix.errors import EnginixError, GateError, UsageError
from enginix.gates import quality
from enginix.gates.answers import LAYERS_OF, Answers, Passage, require_same, score, together
from enginix.gates.material import Material, Tokenizer, same_tokens
from enginix.gates.outcome import Outcome
from enginix.gates.subject import Subject
from enginix.reference import layout
from enginix.reference.config import CheckpointConfig
from enginix.reference.quantization import MIXED
from enginix.tables import table

LOGITS = "logits"
LONG = 4096  # tokens of context from which a default gate looks for facts planted far back
GATES = (LOGITS, "coverage", "smoke", "agreement", "perplexity", "task", "context", "invariance")


@dataclass(frozen=True)
class Engine:
    """What is judged.

    Attributes:
        config: of its checkpoint.
        tokenizer: its own.
    """

    subject: Subject
    tokenizer: Tokenizer
    config: CheckpointConfig


def format_of(config: CheckpointConfig) -> str:
    """The row of default bounds for a checkpoint: the coarsest number format in it."""
    rows = table("gates")["formats"]
    found = set(config.quantization.algorithms - {MIXED}) | {"NO_QUANT"}
    if config.quantization.kv_cache is not None:
        found.add("FP8")
    return max(found, key=list(rows).index)


def default(config: CheckpointConfig) -> tuple[str, ...]:
    """The gates of an engine that asks for none: function where it is exact, quality where it is not.

    Planted facts are looked for where a model is made for long context.
    """
    quantization = config.quantization
    plain = not quantization.algorithms and quantization.kv_cache is None
    spared = (LOGITS,) if config.context >= LONG else (LOGITS, "context")
    return (LOGITS,) if plain else tuple(g for g in GATES if g not in spared)


def bounds(config: CheckpointConfig, wanted: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """For each wanted gate its bounds: the table's for the number format, changed by what is asked.

    Args:
        wanted: gate → bounds to change, for instance ``{"perplexity": {"ratio": 1.02}}``.

    Raises:
        UsageError: no such gate or bound, or a bound that is no number.
    """
    name = format_of(config)
    rows: Mapping[str, Any] = table("gates")["formats"][name]["bounds"]
    out = {}
    for gate, asked in wanted.items():
        if gate not in GATES:
            raise UsageError(f"no gate {gate!r}", fix=f"there are: {', '.join(GATES)}")
        known = {LOGITS: {"tolerance": None}}.get(gate, rows.get(gate, {}))
        for key, value in asked.items() if isinstance(asked, Mapping) else [(None, asked)]:
            if key not in known:
                raise UsageError(
                    f"gate {gate} has no bound {key!r}", fix=f"it has: {', '.join(known) or 'none'}"
                )
            listed = isinstance(known[key], list)
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if listed != isinstance(value, list) or not (listed or (number and value > 0)):
                raise UsageError(f"bound {key} of gate {gate} is {value!r}", fix="a positive number")
        out[gate] = {**rows.get(gate, {}), **asked}
    return out


def reasons(config: CheckpointConfig) -> dict[str, str]:
    """Why the default bounds of a checkpoint's number format are what they are."""
    row = table("gates")["formats"][format_of(config)]
    return {"format": format_of(config), "reason": row["reason"]}


def coverage(config: CheckpointConfig, bound: Mapping[str, Any]) -> Outcome:
    """Every matrix that the number format is for has it; what is spared is named in the bounds."""
    spared = []
    for layer in range(config.layers):
        for linear in (*layout.attention_linears(config, layer), *layout.mlp_linears(config, layer)):
            if layout.algorithm(config, linear) is None:
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
        return Outcome("coverage", True, "no quantized weights", dict(bound))
    return Outcome("coverage", not extra, summary, {**bound, "spared": spared})


def layers(subject: Subject, material: Material, answers: Answers) -> list[float]:
    """Relative error of what each layer hands on, on the first passage's first positions."""
    found = subject.hidden(material.passages[0].tokens[:LAYERS_OF])
    if len(found) != len(answers.hidden):
        raise GateError(f"{len(found)} layers, the reference has {len(answers.hidden)}")
    return [
        quality.rounded(float((a.cpu().double() - b.double()).norm() / b.double().norm()))
        for a, b in zip(found, answers.hidden, strict=True)
    ]


def run(
    load: Callable[[], Engine],
    reference: Tokenizer,
    material: Material,
    answers: Answers,
    wanted: Mapping[str, Mapping[str, Any]],
) -> tuple[tuple[Outcome, ...], dict[str, Any]]:
    """Every wanted gate's answer but ``logits``', and what belongs to none of them.

    Nothing is raised for what is judged: what keeps a gate from an answer is its answer.

    Args:
        reference: the model's tokenizer, by which ``material`` was made.
        wanted: gate → bounds (:func:`bounds`).

    Raises:
        GateError: the reference's answers are to other questions than ``material``.
    """
    require_same(answers, material)
    names = [name for name in GATES if name in wanted and name != LOGITS]
    try:
        engine = load()
        same_tokens(engine.tokenizer, reference, material)
        if engine.subject.vocab_size <= max(t for p in material.passages for t in p.tokens):
            raise GateError("the engine's vocabulary is smaller than the model's")
    except Exception as e:
        return tuple(_failed(name, e) for name in names), {}
    subject, scored = engine.subject, Scored(engine.subject, material, answers)
    runs: dict[str, Callable[[Any], Outcome]] = {
        "coverage": lambda b: coverage(engine.config, b),
        "smoke": lambda b: quality.smoke(subject, material, answers, engine.tokenizer, b),
        "agreement": lambda b: quality.agreement(*scored.get(), answers, b),
        "perplexity": lambda b: quality.perplexity(scored.get()[0], answers, b),
        "task": lambda b: quality.task(subject, material, answers, engine.tokenizer, b),
        "context": lambda b: quality.context(subject, material, answers, engine.tokenizer, b),
        "invariance": lambda b: quality.invariance(subject, material, answers, b),
    }
    outcomes = []
    for name in names:
        try:
            outcomes.append(runs[name](dict(wanted[name])))
        except Exception as e:
            outcomes.append(_failed(name, e))
    try:
        beside: dict[str, Any] = {"layerErrors": layers(subject, material, answers)}
    except Exception as e:
        beside = {"layerErrors": _say(e)}
    return tuple(outcomes), beside


def _say(e: Exception) -> str:
    return e.what if isinstance(e, EnginixError) else f"{type(e).__name__}: {e}"


def _failed(gate: str, e: Exception) -> Outcome:
    return Outcome(gate, False, f"could not be run: {_say(e)}", {"error": _say(e)})


class Scored:
    """The engine's distributions on the evaluation text, computed once for two gates."""

    def __init__(self, subject: Subject, material: Material, answers: Answers) -> None:
        self.subject, self.material, self.answers = subject, material, answers
        self._found: tuple[Sequence[Passage], Sequence[torch.Tensor]] | None = None

    def get(self) -> tuple[Sequence[Passage], Sequence[torch.Tensor]]:
        if self._found is None:
            kept: list[Passage] = []

            def divergence(number: int, logs: torch.Tensor) -> torch.Tensor:
                if not kept:
                    kept.extend(together(self.answers.passages, logs.device))
                return quality.divergence(logs, kept[number])

            texts = [p.tokens for p in self.material.passages]
            self._found = score(self.subject, texts, divergence)
        return self._found
