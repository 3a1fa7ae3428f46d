"""Metrics of the gateway, in the text format of Prometheus: load, times and tokens of each model and client.

Labels are names of the gateway's description alone, so that no client can make a series.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
PREFIX = "enginix_gateway_"
# Upper bounds of histograms in seconds: from the pace of a small model to a long answer.
_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_REQUEST = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

# How requests end as a rule.
_OUTCOMES = (
    ("answered", 200),
    ("refused", 400),
    ("refused", 429),
    ("failed", 200),
    ("failed", 502),
    ("failed", 503),
    ("failed", 504),
    ("gone", 499),
)

Labels = tuple[tuple[str, str], ...]


@dataclass
class _Histogram:
    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count a value, which came ``times`` times."""
        self.counts = self.counts or [0] * (len(self.bounds) + 1)
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


class GatewayMetrics:
    """All metrics of one gateway.

    Args:
        servers: returns the count of servers, and of those that answer, for each model.
        pairs: models and clients, whose series begin at 0: Prometheus does not see the first increase of
            a series that begins later.
    """

    def __init__(
        self,
        servers: Callable[[], Mapping[str, Mapping[str, Any]]],
        pairs: Iterable[tuple[str, str]] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._servers, self.clock = servers, clock
        self._running: Counter[Labels] = Counter()
        self.waiting: Counter[Labels] = Counter()
        self._requests: Counter[Labels] = Counter()
        self.prompt_tokens: Counter[Labels] = Counter()
        self.completion_tokens: Counter[Labels] = Counter()
        self.first_token = defaultdict[Labels, _Histogram](lambda: _Histogram(_FIRST_TOKEN))
        self.between_tokens = defaultdict[Labels, _Histogram](lambda: _Histogram(_BETWEEN_TOKENS))
        self.seconds = defaultdict[Labels, _Histogram](lambda: _Histogram(_REQUEST))
        self._requests[_label_request("-", "-", "refused", 401)] = 0
        for model, client in pairs:
            self._begin_at_zero(model, client)

    def count_request(self, model: str, client: str, outcome: str, status: int) -> None:
        """Count a request that has ended.

        Args:
            outcome: ``answered``, ``refused``, ``failed`` or ``gone`` (its client left).
            status: the answer's HTTP status, which is 200 for a stream that broke off.
        """
        self._requests[_label_request(model, client, outcome, status)] += 1

    @contextmanager
    def measure(self, model: str, client: str) -> Iterator[RequestMeter]:
        """Measure a request while it runs."""
        labels = _label(model, client)
        meter = RequestMeter(self, labels)
        self._running[labels] += 1
        self.waiting[labels] += 1
        try:
            yield meter
        finally:
            self._running[labels] -= 1
            meter.begin_answer(has_tokens=False)

    def _begin_at_zero(self, model: str, client: str) -> None:
        for outcome, status in _OUTCOMES:
            self._requests[_label_request(model, client, outcome, status)] = 0
        self._requests[_label_request("-", client, "refused", 404)] = 0
        labels = _label(model, client)
        for counts in (self._running, self.waiting, self.prompt_tokens, self.completion_tokens):
            counts[labels] = 0
        for series in (self.first_token, self.between_tokens, self.seconds):
            series[labels].add(0.0, 0)

    def render(self) -> str:
        """Return all metrics as text."""
        lines: list[str] = []
        gauges = (
            ("requests_running", "Requests that are answered now.", self._running),
            ("requests_waiting", "Running requests without a token of their answer yet.", self.waiting),
        )
        counters = (
            ("requests_total", "Requests that have ended, by outcome and HTTP status.", self._requests),
            ("prompt_tokens_total", "Tokens of prompts.", self.prompt_tokens),
            ("completion_tokens_total", "Tokens of answers.", self.completion_tokens),
        )
        histograms = (
            ("first_token_seconds", "Time until an answer's first token.", self.first_token),
            ("between_tokens_seconds", "Time between two tokens of an answer.", self.between_tokens),
            ("request_seconds", "Time of a whole answer.", self.seconds),
        )
        for rows, kind in ((gauges, "gauge"), (counters, "counter")):
            for name, text, counts in rows:
                lines += _head(name, text, kind)
                lines += [_line(name, labels, number) for labels, number in counts.items()]
        for name, text, series in histograms:
            lines += _head(name, text, "histogram")
            for labels, histogram in series.items():
                lines += _histogram_lines(name, labels, histogram)
        for name, text, key in (
            ("servers", "Servers of a model.", "servers"),
            ("servers_answering", "Servers of a model that answered when last asked.", "answering"),
        ):
            lines += _head(name, text, "gauge")
            lines += [_line(name, (("model", m),), row[key]) for m, row in self._servers().items()]
        return "\n".join(lines) + "\n"


class RequestMeter:
    """Measures one request. Its parts, the texts of a list of prompts, are measured by :meth:`part`."""

    def __init__(self, metrics: GatewayMetrics, labels: Labels) -> None:
        self._metrics, self._labels = metrics, labels
        self._begin, self._waits = metrics.clock(), True
        self.tokens = 0

    def part(self) -> PartMeter:
        """Return a meter for one attempt at one part."""
        return PartMeter(self, self._metrics.clock)

    def begin_answer(self, *, has_tokens: bool) -> None:
        """Record that the answer has begun, or ended without a token that was seen."""
        if self._waits:
            self._waits = False
            self._metrics.waiting[self._labels] -= 1
            if has_tokens:
                self._metrics.first_token[self._labels].add(self._metrics.clock() - self._begin)

    def end_answer(self) -> None:
        """Record that the whole answer was sent."""
        self._metrics.seconds[self._labels].add(self._metrics.clock() - self._begin)

    def space(self, seconds: float, tokens: int) -> None:
        """Record ``tokens`` that came together, after ``seconds``."""
        self._metrics.between_tokens[self._labels].add(seconds / tokens, tokens)

    def use(self, prompt: int, completion: int) -> None:
        """Count tokens."""
        self.tokens += prompt + completion
        self._metrics.prompt_tokens[self._labels] += prompt
        self._metrics.completion_tokens[self._labels] += completion


class PartMeter:
    """Measures one attempt to answer one part; an attempt that fails before its first piece counts nothing.

    Args:
        request: the meter of the whole request.
    """

    def __init__(self, request: RequestMeter, clock: Callable[[], float]) -> None:
        self._request, self._clock = request, clock
        self._last = 0.0
        self._prompt = self._completion = 0
        self._counted = (0, 0)

    def see_piece(self, prompt: int, completion: int) -> None:
        """Take a piece.

        Args:
            prompt: tokens of the prompt; 0 if they are unknown.
            completion: tokens of the answer so far.
        """
        now, tokens = self._clock(), completion - self._completion
        if tokens > 0:
            if self._completion:
                self._request.space(now - self._last, tokens)
            self._request.begin_answer(has_tokens=True)
            self._last = now
        self._prompt, self._completion = max(prompt, self._prompt), max(completion, self._completion)

    def see_token(self) -> None:
        """Take a piece of a server that does not count its tokens: it counts as one."""
        self.see_piece(0, self._completion + 1)

    def see_usage(self, usage: Any) -> None:
        """Take the server's own counts, if it sent any; they come at the end of an answer."""
        if isinstance(usage, Mapping):
            prompt, completion = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
            self._prompt = prompt if isinstance(prompt, int) else self._prompt
            self._completion = completion if isinstance(completion, int) else self._completion

    def count(self) -> None:
        """Count the tokens since the last call: the client gets them."""
        prompt, completion = self._counted
        self._counted = max(prompt, self._prompt), max(completion, self._completion)
        self._request.use(self._counted[0] - prompt, self._counted[1] - completion)


def _label(model: str, client: str) -> Labels:
    return (("model", model), ("client", client))


def _label_request(model: str, client: str, outcome: str, status: int) -> Labels:
    return (*_label(model, client), ("outcome", outcome), ("status", str(status)))


def _head(name: str, text: str, kind: str) -> list[str]:
    return [f"# HELP {PREFIX}{name} {text}", f"# TYPE {PREFIX}{name} {kind}"]


def _line(name: str, labels: Labels, value: float) -> str:
    inner = ",".join(f'{key}="{_escape(text)}"' for key, text in labels)
    return f"{PREFIX}{name}{{{inner}}} {value!r}"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _histogram_lines(name: str, labels: Labels, histogram: _Histogram) -> Iterator[str]:
    number = 0
    for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
        number += count
        yield _line(f"{name}_bucket", (*labels, ("le", str(bound))), number)
    yield _line(f"{name}_sum", labels, histogram.total)
    yield _line(f"{name}_count", labels, number)
