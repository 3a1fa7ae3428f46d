"""Read ``gates.json`` defensively: invalid figures become doubts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix.errors import GateError, UsageError
from enginix.files import refuse_damage
from enginix.report.model_origin import ModelOrigin, make_printable, read_model_origin

FILE = "gates.json"


@dataclass(frozen=True)
class GateFigures:
    """Figures of the gates; None where a gate did not run or gave no valid figure.

    Attributes:
        verdict: ``passed``, ``failed``, ``not gated``.
        failed: names of the gates that failed.
        ratio, low, high: perplexity over the reference's, and its 95% interval.
        perplexity, reference_perplexity: of the evaluation text.
        same: share of positions with the reference's most likely token.
        greedy: share of the reference's greedy answers' tokens, for engines that give no distributions.
        kl: mean Kullback-Leibler divergence from the reference, nats.
        score, questions: number of right answers, and of questions.
        material: digest of the questions and texts.
        reference: the reference model.
        doubts: invalid and contradictory figures.
    """

    verdict: str
    gates: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    perplexity: float | None = None
    reference_perplexity: float | None = None
    same: float | None = None
    greedy: float | None = None
    kl: float | None = None
    score: int | None = None
    reference_score: int | None = None
    questions: int | None = None
    material: str | None = None
    reference: ModelOrigin | None = None
    doubts: tuple[str, ...] = ()


def _parse_finite(value: Any) -> float | None:
    """Return a JSON number as float; None for other values and for integers beyond float's range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


class _GateFigureReader:
    """Reads numbers of one file; invalid ones are left out and added to ``doubts``."""

    def __init__(self, gates: Mapping[str, Any]) -> None:
        self.gates, self.doubts = gates, list[str]()

    def number(self, gate: str, key: str, least: float, most: float = math.inf) -> float | None:
        detail = self.gates.get(gate, {})
        if key not in detail:
            return None
        return self.checked(f"{gate}.{key}", detail[key], least, most)

    def checked(self, name: str, value: Any, least: float, most: float) -> float | None:
        number = _parse_finite(value)
        if number is not None and least <= number <= most:
            return number
        self.doubts.append(f"{FILE}: {name} is {make_printable(str(value)[:40])}, which is not valid")
        return None

    def whole(self, gate: str, key: str, most: int = 10**9) -> int | None:
        number = self.number(gate, key, 0, most)
        if number is not None and number != int(number):
            self.doubts.append(f"{FILE}: {gate}.{key} is {number}, which is out of range")
            return None
        return None if number is None else int(number)

    def interval(self, ratio: float | None) -> tuple[float | None, float | None]:
        ends = self.gates.get("perplexity", {}).get("interval")
        if ends is None:
            return None, None
        if not isinstance(ends, list) or len(ends) != 2:
            self.doubts.append(f"{FILE}: perplexity.interval must be [low, high]")
            return None, None
        low, high = (self.checked("perplexity.interval", end, 0.0, math.inf) for end in ends)
        if low is None or high is None:
            return None, None
        if low > high or (ratio is not None and not low <= ratio <= high):
            self.doubts.append(f"{FILE}: perplexity.interval {low:g} to {high:g} does not hold {ratio}")
            return None, None
        return low, high


def read_gate_figures(path: Path) -> GateFigures | None:
    """Read the figures of an artefact's gates; None where it has no ``gates.json``.

    Raises:
        GateError: the file is not one that ``enginix gate`` writes.
    """
    if not path.exists():
        return None
    with refuse_damage(GateError, path, "judge the engine again"):
        if not path.is_file():  # reading a pipe would block
            raise OSError("not a file")
        evidence = json.loads(path.read_text("utf-8"))
    gates = evidence.get("gates") if isinstance(evidence, dict) else None
    if not isinstance(gates, dict) or not all(isinstance(gate, dict) for gate in gates.values()):
        raise GateError("not a file of enginix gate", where=path, fix="judge the engine again")
    return parse_gate_figures(evidence)


def parse_gate_figures(evidence: Mapping[str, Any]) -> GateFigures:
    """Parse the content of a ``gates.json``, whose gates are objects."""
    gates: Mapping[str, Mapping[str, Any]] = evidence["gates"]
    reader = _GateFigureReader(gates)
    failed = tuple(sorted(make_printable(n) for n, gate in gates.items() if gate.get("passed") is not True))
    verdict = "not gated" if not gates else "failed" if failed else "passed"
    passed = evidence.get("passed")
    # Not by a dict's key, for which 1 is True.
    claims = ((True, "passed"), (False, "failed"), (None, "not gated"))
    claimed = next((claim for value, claim in claims if passed is value), "?")
    if claimed != verdict:
        reader.doubts.append(f"{FILE}: its top says {claimed}, but its gates give {verdict}")
    ratio = reader.number("perplexity", "ratioFound", 0.0)
    low, high = reader.interval(ratio)
    questions = reader.whole("task", "questions")
    material, model = evidence.get("material"), evidence.get("reference")
    sha = material.get("sha256") if isinstance(material, dict) else None
    return GateFigures(
        verdict=verdict,
        gates=tuple(sorted(map(make_printable, gates))),
        failed=failed,
        ratio=ratio,
        low=low,
        high=high,
        perplexity=reader.number("perplexity", "found", 1.0),
        reference_perplexity=reader.number("perplexity", "reference", 1.0),
        same=reader.number("agreement", "top1Found", 0.0, 1.0),
        greedy=reader.number("greedy", "top1Found", 0.0, 1.0),
        kl=reader.number("agreement", "klFound", 0.0),
        score=reader.whole("task", "score", questions or 10**9),
        reference_score=reader.whole("task", "referenceScore", questions or 10**9),
        questions=questions,
        material=make_printable(sha) if isinstance(sha, str) else None,
        reference=read_model_origin(model) if isinstance(model, dict) else None,
        doubts=tuple(reader.doubts),
    )


@dataclass(frozen=True)
class MeasuredSpeeds:
    """Tokens a second, all measured in one setting.

    Attributes:
        on: machine, tool and load, from the file.
        rates: name of an artefact → tokens a second.
    """

    on: str
    rates: Mapping[str, float]


def read_speeds(path: Path) -> MeasuredSpeeds:
    """``{"on": "NVIDIA H200, trtllm-bench, batch 8", "tokensPerSecond": {"qwen3-8b-fp8": 4321.0}}``.

    Raises:
        UsageError: another format, or a rate that is not a positive number.
    """
    fix = '{"on": "machine, tool, load", "tokensPerSecond": {"NAME": 123.4}}'
    with refuse_damage(UsageError, path, fix, what="unreadable speeds"):
        content = json.loads(path.read_text("utf-8"))
    if not isinstance(content, dict) or set(content) != {"on", "tokensPerSecond"}:
        raise UsageError("not a file of speeds", where=path, fix=fix)
    on, rates = content["on"], content["tokensPerSecond"]
    if not isinstance(on, str) or not on.strip() or not isinstance(rates, dict) or not rates:
        raise UsageError("speeds need the machine and a rate for each name", where=path, fix=fix)
    for name, rate in rates.items():
        if (_parse_finite(rate) or 0) <= 0:
            raise UsageError(f"the speed of {name!r} is {str(rate)[:40]}", where=path, fix=fix)
    return MeasuredSpeeds(on, {name: float(rate) for name, rate in rates.items()})
