"""Metrics of a server of kind ``reference``, beside Triton's own on the same page.

Triton counts a decoupled model's request as done when ``execute`` returns, which is before its first token.
Each call to a metric is a message to the server's process: values are summed here, and sent a few times a
second.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

PERIOD = 0.25
PREFIX = "enginix_server_"
OUTCOMES = ("answered", "refused", "full", "failed", "cancelled")
# Why a request has failed, as enginix.triton.models.answers names it, and its outcome.
_FAILURES = {"refused": "refused", "full": "full", "error": "failed"}
_SUMS = {
    "answer_seconds_total": "Seconds of all answers.",
    "first_token_seconds_total": "Seconds until the first tokens of answers.",
    "first_tokens_total": "Answers that have a first token.",
    "between_tokens_seconds_total": "Seconds between two tokens of an answer.",
    "between_tokens_total": "Tokens that came after another one of their answer.",
    "prompt_tokens_total": "Tokens of prompts.",
    "completion_tokens_total": "Tokens of answers.",
}
_EXECUTOR_SUMS = {
    "waited_seconds_total": "Seconds that requests waited for a place in the batch.",
    "admitted_total": "Requests that got a place in the batch.",
}


@dataclass
class AnswerTimes:
    """Times of one answer, by ``time.monotonic``: its begin, first and last token (0 before there is one)."""

    begin: float = field(default_factory=time.monotonic)
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0

    def see_token(self) -> None:
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.tokens += 1


class ServerMetrics:
    """The metrics of one model.

    Args:
        backend: the module ``triton_python_backend_utils``.
        model: the model's name.
        load: returns numbers of the executor by name: requests ``running`` and ``waiting`` now, and the sums
            ``waited_seconds_total`` and ``admitted_total``; ``None`` for a model without it.
    """

    def __init__(
        self, backend: Any, model: str, load: Callable[[], Mapping[str, float]] | None = None
    ) -> None:
        self._lock = threading.Lock()
        self._sums: Counter[str] = Counter()
        self._sent: dict[str, float] = {}
        self._load = load
        self._closing = threading.Event()
        self._metrics: dict[str, Any] = {}
        # Triton forgets a family, and its metrics, with the last reference to it.
        self._families: list[Any] = []
        self._thread: threading.Thread | None = None
        if not hasattr(backend, "MetricFamily"):
            return
        try:
            self._make_metrics(backend, model)
        except Exception:
            # A server without metrics (--no-metrics) still answers.
            traceback.print_exc()
            self._metrics = {}
            return
        self._thread = threading.Thread(target=self._run, name="enginix-metrics", daemon=True)
        self._thread.start()

    def count_answer(self, finish: str, prompt: int, completion: int, times: AnswerTimes) -> None:
        """Count a request that has ended without an error.

        Args:
            finish: why it ended.
            prompt, completion: tokens of its prompt and answer.
        """
        outcome = "cancelled" if finish == "cancelled" else "answered"
        with self._lock:
            self._sums[f"requests_total {outcome}"] += 1
            self._sums["prompt_tokens_total"] += prompt
            self._sums["completion_tokens_total"] += completion
            if outcome == "answered":
                self._add_seconds("answer_seconds_total", time.monotonic() - times.begin)
            if times.tokens:
                self._sums["first_tokens_total"] += 1
                self._add_seconds("first_token_seconds_total", times.first - times.begin)
                self._sums["between_tokens_total"] += times.tokens - 1
                self._add_seconds("between_tokens_seconds_total", times.last - times.first)

    def count_failure(self, reason: str) -> None:
        """Count a request that has failed."""
        with self._lock:
            self._sums[f"requests_total {_FAILURES[reason]}"] += 1

    def close(self) -> None:
        """Send what is left, and end the thread."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _add_seconds(self, name: str, seconds: float) -> None:
        self._sums[name] += seconds  # type: ignore[assignment]

    def _make_metrics(self, backend: Any, model: str) -> None:
        family = backend.MetricFamily

        def make(name: str, text: str, kind: Any, rows: Mapping[str, Mapping[str, str]]) -> None:
            made = family(name=PREFIX + name, description=text, kind=kind)
            self._families.append(made)
            for key, labels in rows.items():
                self._metrics[key] = made.Metric(labels={"model": model, **labels})

        outcomes = {f"requests_total {outcome}": {"outcome": outcome} for outcome in OUTCOMES}
        make("requests_total", "Requests that have ended, by outcome.", family.COUNTER, outcomes)
        sums = _SUMS | (_EXECUTOR_SUMS if self._load is not None else {})
        for name, text in sums.items():
            make(name, text, family.COUNTER, {name: {}})
        if self._load is not None:
            states = {state: {"state": state} for state in ("running", "waiting")}
            make("requests", "Requests that are computed, and that wait for a place.", family.GAUGE, states)

    def _run(self) -> None:
        try:
            while not self._closing.wait(PERIOD):
                self._send()
            self._send()
        except Exception:
            # Metrics must not end a server that answers.
            traceback.print_exc()

    def _send(self) -> None:
        with self._lock:
            values: dict[str, float] = dict(self._sums)
        if self._load is not None:
            values |= self._load()
        for name, value in values.items():
            before = self._sent.get(name, 0)
            if value == before:
                continue
            if name in ("running", "waiting"):
                self._metrics[name].set(value)
            else:
                self._metrics[name].increment(value - before)
            self._sent[name] = value
