"""Metrics of a server of kind `reference`, with a stand-in for Triton's metrics."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import pytest

from enginix.triton.models.server_metrics import AnswerTimes, ServerMetrics


class Metric:
    def __init__(self, backend: Backend, key: tuple[str, ...]) -> None:
        self.backend, self.key = backend, key
        backend.values[key] = 0.0

    def increment(self, value: float) -> None:
        assert value > 0
        self.backend.values[self.key] += value

    def set(self, value: float) -> None:
        self.backend.values[self.key] = value


class Backend:
    """Stands in for triton_python_backend_utils."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = defaultdict(float)
        self.MetricFamily = type(
            "MetricFamily", (Family,), {"backend": self, "COUNTER": "counter", "GAUGE": "gauge"}
        )


class Family:
    backend: Backend

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name = name

    def Metric(self, labels: dict[str, str]) -> Metric:
        return Metric(self.backend, (self.name.removeprefix("enginix_server_"), *labels.values()))


def test_counts_are_those_of_the_answers() -> None:
    backend, load = (
        Backend(),
        {"running": 2.0, "waiting": 5.0, "admitted_total": 3, "waited_seconds_total": 1.5},
    )
    metrics = ServerMetrics(backend, "m", lambda: load)
    times = AnswerTimes()
    for _ in range(3):
        times.see_token()
    times.begin, times.first, times.last = times.first - 2, times.first, times.first + 4
    metrics.count_answer("stop", 7, 3, times)
    metrics.count_answer("cancelled", 7, 0, AnswerTimes())
    for reason in ("refused", "refused", "full", "error"):
        metrics.count_failure(reason)
    metrics.close()
    values = backend.values
    assert values["requests_total", "m", "answered"] == 1 and values["requests_total", "m", "cancelled"] == 1
    assert [values["requests_total", "m", o] for o in ("refused", "full", "failed")] == [2, 1, 1]
    assert values["first_token_seconds_total", "m"] == pytest.approx(2)
    assert (values["first_tokens_total", "m"], values["between_tokens_total", "m"]) == (1, 2)
    assert values["between_tokens_seconds_total", "m"] == pytest.approx(4)
    assert (values["prompt_tokens_total", "m"], values["completion_tokens_total", "m"]) == (14, 3)
    assert (values["requests", "m", "running"], values["requests", "m", "waiting"]) == (2, 5)
    assert (values["admitted_total", "m"], values["waited_seconds_total", "m"]) == (3, 1.5)


def test_gauges_fall_again_and_nothing_is_sent_twice() -> None:
    backend, load = Backend(), {"running": 1.0, "waiting": 0.0}
    metrics = ServerMetrics(backend, "m", lambda: dict(load))
    metrics.count_failure("full")
    while not backend.values["requests", "m", "running"]:
        time.sleep(0.01)
    load["running"] = 0.0
    metrics.close()
    assert backend.values["requests", "m", "running"] == 0
    assert backend.values["requests_total", "m", "full"] == 1


@pytest.mark.parametrize("backend", [object(), type("Off", (), {"MetricFamily": None})()])
def test_a_server_without_metrics_still_answers(backend: Any) -> None:
    metrics = ServerMetrics(backend, "m")
    metrics.count_answer("stop", 1, 1, AnswerTimes())
    metrics.count_failure("error")
    metrics.close()
