"""The measured speed of an engine, in a file beside it: ``DIR.bench.json`` for the engine ``DIR``.

It is no part of the engine, whose bytes depend on its inputs alone; ``enginix bench DIR`` writes it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix.run_log import name_beside, read_manifest_digest

SUFFIX = ".bench.json"
VERSION = 1
LARGEST = 64 << 20  # bytes; a measurement holds its samples


@dataclass(frozen=True)
class StoredSpeed:
    """What a measurement says of an engine; absent figures are None.

    Attributes:
        rate: tokens of all answers a second.
        first_token: mean seconds to the first token.
        between_tokens: mean seconds between tokens.
        machine: GPUs or processors of the machine that measured.
        load: the request mix, in words.
        ready: seconds from the start of the engine's server until it answered; None where it ran already.
    """

    rate: float | None
    first_token: float | None
    between_tokens: float | None
    machine: str
    load: str
    ready: float | None = None


def find_bench_record(engine: Path) -> Path:
    """Return the place of an engine's measurement."""
    return name_beside(engine, SUFFIX)


def read_bench_record(engine: Path) -> StoredSpeed | str | None:
    """Return the measurement beside an engine; None without one; why it cannot be shown, as text."""
    file = find_bench_record(engine)
    if not file.exists():
        return None
    try:
        if file.stat().st_size > LARGEST:
            return f"{file.name} is larger than any measurement"
        raw = json.loads(file.read_text("utf-8"))
        if raw["version"] != VERSION:
            return f"{file.name} is of version {ascii(raw['version'])[:20]}, not {VERSION}"
        served = raw["engine"]
        if served["manifest"] is None or served["manifest"] != read_manifest_digest(engine):
            return f"{file.name} measured another build of it"
        if int(raw["failed"]):
            return f"in {file.name} {int(raw['failed'])} of {int(raw['requests'])} requests failed"
        return StoredSpeed(
            _read_figure(raw["outputTokensPerSecond"]),
            _read_figure((raw["figures"]["firstTokenSeconds"] or {}).get("mean")),
            _read_figure((raw["figures"]["betweenTokensSeconds"] or {}).get("mean")),
            _describe_machine(raw["client"]),
            _describe_load(raw["mix"]),
            _read_figure((raw.get("start") or {}).get("readySeconds")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{file.name} is no measurement of enginix bench"


def _read_figure(value: Any) -> float | None:
    if value is None:
        return None
    figure = float(value)
    if isinstance(value, bool) or not math.isfinite(figure) or figure <= 0:
        raise ValueError(value)
    return figure


def _describe_machine(client: Any) -> str:
    gpus = [str(name)[:60] for name in client["gpus"][:16]]
    return ", ".join(gpus) or f"{int(client['cpus'])} processors"


def _describe_load(mix: Any) -> str:
    """Return a request mix in words."""
    rate = "" if mix["rate"] is None else f" at {float(mix['rate']):g} a second"
    return (
        f"{int(mix['requests'])} requests{rate}, {int(mix['concurrency'])} at the same time, "
        f"{int(mix['input_words'])} words in, {int(mix['output_tokens'])} tokens out"
    )
