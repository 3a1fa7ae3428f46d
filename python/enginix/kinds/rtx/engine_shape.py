"""The static sizes of an rtx engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineShape:
    """The sizes that every tensor of an engine is made of; all are fixed when it is built.

    A step takes ``step_tokens`` tokens of each slot: a piece of its prompt, or its last token and padding.
    One step length serves prompts and answers, so that the weights are in the engine once.

    Attributes:
        slots: sequences that are computed together.
        step_tokens: tokens of each slot in one step.
        max_seq_len: tokens of a sequence, prompt and answer together.
    """

    slots: int
    step_tokens: int
    max_seq_len: int

    @property
    def cache_length(self) -> int:
        """Positions of each slot in the KV cache: a last token's padding is written behind it."""
        return self.max_seq_len + self.step_tokens - 1
