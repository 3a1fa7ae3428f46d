"""A call to a Triton server and its failure, passed around LiteLLM.

LiteLLM rewrites messages, parameters and errors on the way, differently in each version.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from enginix.gateway.request import RequestRejected


@dataclass
class TritonCall:
    """One request to one server.

    Attributes:
        question: Triton's inputs; without ``max_tokens`` to generate as many tokens as fit.
        stop: texts that end the answer.
        max_tokens: limit for a request without one; ``None`` is all that fits.
        failure: the reason, if the call failed.
        usage: the server's counts at the answer's end.
        model: the client's name of the model, for errors.
        see_piece: receives the tokens of prompt and answer so far, as each piece comes.
    """

    question: dict[str, Any]
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    failure: RequestRejected | None = None
    usage: dict[str, int] | None = None
    model: str = "the model"
    see_piece: Callable[[int, int], None] = lambda prompt, completion: None


CALL: ContextVar[TritonCall] = ContextVar("enginix_call")
