"""Balancing and fail-over: the order in which a model's servers are tried."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from enginix.gateway.litellm_config import deployment_id
from enginix.gateway.spec import BackendServer, GatewaySpec

# Seconds for which a failed server is skipped if another one can answer.
REST_SECONDS = 5.0
# Weight of a new time in the moving average of a server's times.
_WEIGHT = 0.2


@dataclass(frozen=True)
class Candidate:
    """A server that may answer.

    Attributes:
        deployment: the server's name in LiteLLM's configuration.
    """

    deployment: str
    server: BackendServer


class Balancer:
    """The servers of all models.

    Args:
        answers: tells whether a server is known to answer.
    """

    def __init__(
        self,
        spec: GatewaySpec,
        answers: Callable[[BackendServer], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec, self._answers, self._clock = spec, answers, clock
        self._rests: dict[BackendServer, float] = {}
        self._seconds: dict[BackendServer, float] = {}

    def candidates(self, model: str) -> Iterator[Candidate]:
        """Yield the servers to ask, in order; each one after those before it have failed.

        Servers of the model come first, then those of its fallbacks. Servers that do not answer, or have just
        failed, come last.
        """
        late: list[Candidate] = []
        for name in (model, *self._spec.fallbacks.get(model, ())):
            servers = self._spec.models[name]
            candidates = [Candidate(deployment_id(name, i, len(servers)), s) for i, s in enumerate(servers)]
            random.shuffle(candidates)
            if self._spec.strategy == "latency-based-routing":
                candidates.sort(key=lambda c: self._seconds.get(c.server, 0.0))
            for candidate in candidates:
                # Checked when its turn comes: the state may have changed during the earlier attempts.
                if self._is_available(candidate.server):
                    yield candidate
                else:
                    late.append(candidate)
        yield from late

    def succeeded(self, server: BackendServer, seconds: float) -> None:
        """Record how long a server took to begin an answer."""
        self._rests.pop(server, None)
        before = self._seconds.get(server, seconds)
        self._seconds[server] = before + _WEIGHT * (seconds - before)

    def failed(self, server: BackendServer) -> None:
        self._rests[server] = self._clock() + REST_SECONDS

    def _is_available(self, server: BackendServer) -> bool:
        return self._answers(server) and self._rests.get(server, 0.0) <= self._clock()
