"""One question to a running server, whole and streamed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from enginix.serve.client import TritonClient
from enginix.triton.contract import ENSEMBLE


@dataclass(frozen=True)
class ServerAnswer:
    """A server's answer to one prompt.

    Attributes:
        text: text of the whole answer.
        streamed: text of the streamed pieces, joined.
        tokens: number of generated tokens.
        finish_reason: ``stop`` or ``length``.
        first_token_seconds: from the question to the first piece.
        seconds: from the question to the last piece.
    """

    text: str
    streamed: str
    tokens: int
    finish_reason: str
    first_token_seconds: float
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Return generated tokens per second of the whole streamed answer, prompt included."""
        return self.tokens / self.seconds if self.seconds else 0.0


def ask_server(
    client: TritonClient, prompt: str, max_tokens: int, piece: Callable[[str], None]
) -> ServerAnswer:
    """Send a prompt once to ``/generate``, once to ``/generate_stream``.

    Args:
        piece: receives every piece of text as it comes.

    Raises:
        MachineError: the server refuses; has the server's message.
    """
    question = {"text_input": prompt, "max_tokens": max_tokens}
    whole = client.generate(ENSEMBLE, question)
    start = time.monotonic()
    first, pieces, last = 0.0, [], {}
    for last in client.stream(ENSEMBLE, {**question, "stream": True, "return_num_output_tokens": True}):
        first = first or time.monotonic() - start
        text = str(last.get("text_output", ""))
        pieces.append(text)
        piece(text)
    return ServerAnswer(
        text=str(whole.get("text_output", "")),
        streamed="".join(pieces),
        tokens=int(last.get("num_output_tokens", 0)),
        finish_reason=str(last.get("finish_reason", "")),
        first_token_seconds=first,
        seconds=time.monotonic() - start,
    )
