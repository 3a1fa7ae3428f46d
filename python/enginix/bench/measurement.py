"""What a load measured: figures with confidence intervals, and the comparison of two measurements."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from enginix.bench.load import RequestMix, RequestRecord
from enginix.bench_record import VERSION
from enginix.errors import GateError, MeasurementError, UsageError
from enginix.files import refuse_damage

Samples = npt.NDArray[np.float64]

RESAMPLES = 2000
# Two-sided for figures; one-sided for a regression, whose false alarms are rarer.
CONFIDENCE, ALARM_CONFIDENCE = 0.95, 0.999
# A slowdown below this is never told: machines drift by as much between two runs.
TOLERANCE = 0.03
# No engine computes two tokens in less.
BURST_SECONDS = 0.002
# Figures of which more is slower, as a regression compares them.
FIGURE_LABELS = {
    "firstTokenSeconds": "to the first token",
    "betweenTokensSeconds": "between tokens",
    "requestSeconds": "a request",
}
COMPARED = tuple(FIGURE_LABELS)


@dataclass(frozen=True)
class Figure:
    """A mean with its interval, and percentiles; of samples in the figure's own unit."""

    mean: float
    low: float
    high: float
    p50: float
    p90: float
    p99: float
    samples: int

    def as_json(self) -> dict[str, float | int]:
        return {name: float(f"{value:.6g}") for name, value in asdict(self).items()} | {
            "samples": self.samples
        }


def summarize(samples: Sequence[float]) -> Figure | None:
    """Return a figure of samples; None of none. The interval is a bootstrap of the mean, by a fixed seed."""
    if not samples:
        return None
    values = np.asarray(samples, np.float64)
    means = _resample_means(values, np.random.default_rng(0))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    p50, p90, p99 = np.quantile(values, [0.5, 0.9, 0.99])
    return Figure(
        float(values.mean()), float(low), float(high), float(p50), float(p90), float(p99), len(values)
    )


def _resample_means(values: Samples, chance: np.random.Generator) -> Samples:
    means: Samples = values[chance.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    return means


def collect_samples(records: Sequence[RequestRecord]) -> dict[str, list[float]]:
    """Return the samples of each figure, one a request, of the requests that were answered.

    ``betweenTokensSeconds`` is a request's time from its first to its last piece, a token after the first.
    """
    answered = [record for record in records if record.error is None]
    return {
        "firstTokenSeconds": [r.pieces[0] - r.due for r in answered if r.pieces],
        "betweenTokensSeconds": [
            (r.pieces[-1] - r.pieces[0]) / (r.output_tokens - 1)
            for r in answered
            if len(r.pieces) > 1 and r.output_tokens > 1
        ],
        "requestSeconds": [r.ended - r.due for r in answered],
    }


def came_in_bursts(records: Sequence[RequestRecord]) -> bool:
    """Tell whether most answers' tokens came at once: what lies between them then is no engine's time."""
    streamed = [r.pieces for r in records if r.error is None and len(r.pieces) > 1]
    return 2 * sum(pieces[-1] - pieces[0] < BURST_SECONDS for pieces in streamed) > len(streamed)


def describe_measurement(
    records: Sequence[RequestRecord], mix: RequestMix, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a measurement as it is stored.

    Args:
        about: endpoint, model, machine and engine, as the caller knows them.
    """
    samples = collect_samples(records)
    answered = [record for record in records if record.error is None]
    seconds = max((r.ended for r in records), default=0.0) - min((r.due for r in records), default=0.0)
    summaries = {name: summarize(values) for name, values in samples.items()}
    tokens = sum(record.output_tokens for record in answered)
    inputs = [r.input_tokens for r in answered if r.input_tokens is not None]
    errors = [record.error for record in records if record.error is not None]
    return {
        "version": VERSION,
        **about,
        "mix": asdict(mix),
        "requests": len(records),
        "failed": len(errors),
        "errors": sorted(set(errors))[:5],
        "seconds": round(seconds, 4),
        "inputTokens": round(float(np.mean(inputs)), 2) if inputs else None,
        "outputTokens": round(tokens / len(answered), 2) if answered else None,
        "requestsPerSecond": round(len(answered) / seconds, 4) if seconds else None,
        "outputTokensPerSecond": round(tokens / seconds, 3) if seconds else None,
        "figures": {name: figure and figure.as_json() for name, figure in summaries.items()},
        "samples": {name: [float(f"{v:.6g}") for v in values] for name, values in samples.items()},
    }


@dataclass(frozen=True)
class SpeedChange:
    """One figure of two measurements.

    Attributes:
        ratio: of the means, after to before; above 1 is slower.
        low: what the ratio is at least, with the confidence of an alarm.
        is_slower: ``low`` is beyond the tolerance.
    """

    figure: str
    before: float
    after: float
    ratio: float
    low: float
    is_slower: bool


def compare_measurements(
    before: Mapping[str, Any], after: Mapping[str, Any], tolerance: float = TOLERANCE
) -> list[SpeedChange]:
    """Compare the figures of two measurements of the same mix.

    Raises:
        UsageError: the mixes differ, or a measurement has no samples.
    """
    if before["mix"] != after["mix"]:
        differing = [name for name in before["mix"] if before["mix"][name] != after["mix"].get(name)]
        raise UsageError(
            f"the measurements differ in {', '.join(differing) or 'their mix'}",
            fix="measure both with the same options",
        )
    changes = []
    for name in COMPARED:
        old, new = (np.asarray(m["samples"].get(name, ()), np.float64) for m in (before, after))
        if not len(old) or not len(new):
            continue
        chance = np.random.default_rng(0)
        ratios = _resample_means(new, chance) / _resample_means(old, chance)
        low = float(np.quantile(ratios, 1 - ALARM_CONFIDENCE))
        ratio = float(new.mean() / old.mean())
        changes.append(
            SpeedChange(name, float(old.mean()), float(new.mean()), ratio, low, low > 1 + tolerance)
        )
    if not changes:
        raise UsageError("a measurement has no answered request", fix="measure again")
    return changes


def require_no_regression(changes: Sequence[SpeedChange]) -> None:
    """Raise ``GateError`` where a figure is slower beyond noise and tolerance."""
    slower = [change for change in changes if change.is_slower]
    if slower:
        worst = max(slower, key=lambda change: change.low)
        raise GateError(
            f"time {FIGURE_LABELS[worst.figure]} is {worst.ratio:.3f} × what it was, "
            f"and at least {worst.low:.3f} × beyond noise",
            where="gate speed",
            fix="measure both again on the idle machine, in turns; then look at what changed",
        )


def read_measurement(path: Path) -> dict[str, Any]:
    """Read a stored measurement.

    Raises:
        MeasurementError: the file is not one.
    """
    with refuse_damage(MeasurementError, path, "enginix bench writes one", what="not a measurement"):
        measured = json.loads(path.read_text("utf-8"))
        if absent := [name for name in ("version", "mix", "samples") if name not in measured]:
            raise ValueError(f"no {' and no '.join(map(repr, absent))}")
        if measured["version"] != VERSION or not isinstance(measured["mix"], dict):
            raise ValueError("another version")
        samples = {name: [float(v) for v in measured["samples"].get(name, ())] for name in COMPARED}
    return {**measured, "samples": samples}
