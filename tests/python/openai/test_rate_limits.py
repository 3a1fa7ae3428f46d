"""A client's limits: what is let through, and a Retry-After after which the same request is let through."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from enginix.gateway.keys import Caller
from enginix.gateway.rate_limits import RateLimits
from enginix.gateway.request import RequestRejected
from enginix.gateway.spec import GatewayClient


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def caller(requests: int = 0, tokens: int = 0) -> Caller:
    return Caller("alice", GatewayClient("k", requests_per_minute=requests, tokens_per_minute=tokens))


@example(most=1, waits=[1.2584676244187705, 0.0], sizes=[1, 1])
@example(most=1, waits=[1.9336786496604255, 0.0], sizes=[1, 1])
@given(st.integers(1, 5), st.lists(st.floats(0, 40), max_size=30), st.lists(st.integers(1, 3), max_size=30))
def test_no_minute_has_more_and_retry_after_is_true(most: int, waits: list[float], sizes: list[int]) -> None:
    clock = Clock()
    limits, taken = RateLimits(clock), list[tuple[float, int]]()
    # A minute less what adding and subtracting floats loses.
    minute = 60 - 1e-6
    for wait, size in zip(waits, sizes, strict=False):
        clock.now += wait
        size = min(size, most)
        try:
            limits.take(caller(most), size)
        except RequestRejected as e:
            assert e.status == 429 and e.retry_after is not None and 1 <= e.retry_after <= 60
            assert sum(n for at, n in taken if at > clock.now - 60 - 1e-6) + size > most
            clock.now += e.retry_after
            limits.take(caller(most), size)
        taken.append((clock.now, size))
        assert sum(n for at, n in taken if at > clock.now - minute) <= most


def test_tokens_count_when_they_were_used() -> None:
    clock = Clock()
    limits = RateLimits(clock)
    for seconds, tokens in ((0, 60), (10, 39)):
        clock.now = 1000.0 + seconds
        limits.take(caller(tokens=100))
        limits.use(caller(tokens=100), tokens)
    limits.take(caller(tokens=100))
    limits.use(caller(tokens=100), 1)
    clock.now = 1020.5
    with pytest.raises(RequestRejected, match="100 tokens a minute; try again in 40 s") as refused:
        limits.take(caller(tokens=100))
    assert refused.value.retry_after == 40
    clock.now += 40
    limits.take(caller(tokens=100))


def test_one_without_limits_has_none() -> None:
    limits = RateLimits(Clock())
    for _ in range(1000):
        limits.take(Caller("operator"))
        limits.take(caller())
