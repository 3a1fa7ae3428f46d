"""What a request asks of a Triton server, and how that ended, handed past LiteLLM.

LiteLLM rewrites messages, parameters and errors on the way, in each version otherwise.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from enginix.gateway.request import RequestRejected


@dataclass
class TritonCall:
    """One request to one server.

    Attributes:
        question: Triton's inputs, without ``max_tokens`` where what fits is meant.
        stop: texts that end the answer.
        max_tokens: at most, where the request says none; ``None`` is all that fits.
        failure: why it failed, where it did.
    """

    question: dict[str, Any]
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    failure: RequestRejected | None = None


CALL: ContextVar[TritonCall] = ContextVar("enginix_call")
