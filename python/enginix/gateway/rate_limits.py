"""Limits on each client's requests and tokens per minute, and the time until the next request may pass."""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable

from enginix.gateway.keys import Caller
from enginix.gateway.request import RequestRejected

WINDOW_SECONDS = 60.0
# What adding and subtracting moments of a clock loses.
ROUNDING_SECONDS = 1e-6


class RateLimits:
    """Sliding counts over the last minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._requests: defaultdict[str, deque[tuple[float, int]]] = defaultdict(deque)
        self._tokens: defaultdict[str, deque[tuple[float, int]]] = defaultdict(deque)

    def take(self, caller: Caller, requests: int = 1) -> None:
        """Count a request, or a request of several texts.

        Raises:
            RequestRejected: 429, with the seconds after which the request would pass.
        """
        client = caller.client
        if client is None:
            return
        limit, now = client.requests_per_minute, self._clock()
        if 0 < limit < requests:
            raise RequestRejected(
                f"prompt: {requests} texts, and this key may send {limit} requests a minute", "prompt"
            )
        if limit:
            wait = _compute_wait(self._requests[caller.name], limit - requests, now)
            if wait > 0:
                raise _rate_limit_refusal(f"{limit} requests a minute", wait)
        if client.tokens_per_minute:
            wait = _compute_wait(self._tokens[caller.name], client.tokens_per_minute - 1, now)
            if wait > 0:
                raise _rate_limit_refusal(f"{client.tokens_per_minute} tokens a minute", wait)
        if limit:
            self._requests[caller.name].append((now, requests))

    def use(self, caller: Caller, tokens: int) -> None:
        """Count the tokens of an answer."""
        if caller.client and caller.client.tokens_per_minute:
            self._tokens[caller.name].append((self._clock(), tokens))


def _compute_wait(counts: deque[tuple[float, int]], limit: int, now: float) -> float:
    """Return the seconds until the counts within the window are at most ``limit``."""
    while counts and now - counts[0][0] >= WINDOW_SECONDS - ROUNDING_SECONDS:
        counts.popleft()
    total = sum(n for _, n in counts)
    for moment, number in counts:
        if total <= limit:
            return 0.0
        total -= number
        if total <= limit:
            return WINDOW_SECONDS - (now - moment)
    return 0.0


def _rate_limit_refusal(limit: str, seconds: float) -> RequestRejected:
    wait = max(1, math.ceil(seconds - ROUNDING_SECONDS))
    return RequestRejected(
        f"this key is limited to {limit}; try again in {wait} s",
        None,
        429,
        "rate_limit_exceeded",
        retry_after=wait,
    )
