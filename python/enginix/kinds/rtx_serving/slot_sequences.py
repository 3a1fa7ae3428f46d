"""Sequences in the slots of an engine: pieces of prompts and last tokens, in steps of one shape."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch

from enginix.errors import UsageError
from enginix.kinds.rtx.step_inputs import make_step_inputs
from enginix.kinds.rtx_serving.step_backend import StepBackend
from enginix.reference.prompt_check import check_prompt_tokens


class SlotSequences:
    """The sequences of an engine. Not thread-safe.

    Attributes:
        backend: executes the steps.
        lengths: tokens of each slot's sequence that are in the cache.
    """

    def __init__(self, backend: StepBackend) -> None:
        self.backend = backend
        self.lengths = [0] * backend.shape.slots

    @property
    def max_length(self) -> int:
        """Most tokens of a sequence, prompt and answer together."""
        return self.backend.shape.max_seq_len

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Refuse a prompt that the engine cannot process.

        Raises:
            UsageError: empty, too long, or with a token outside the vocabulary.
        """
        check_prompt_tokens(tokens, self.max_length, self.backend.vocab_size, "the engine")

    @torch.inference_mode()
    def run_step(self, pieces: Mapping[int, Sequence[int]], begun: Collection[int] = ()) -> torch.Tensor:
        """Put a piece of tokens into each of some slots.

        Args:
            pieces: slot → tokens that continue its sequence; at most ``step_tokens``.
            begun: slots among them whose sequence begins with this piece.

        Returns:
            Logits float32 [len(pieces), vocab_size], in the order of ``pieces``.

        Raises:
            UsageError: a sequence would become longer than the engine takes.
        """
        lengths = [0 if slot in begun else length for slot, length in enumerate(self.lengths)]
        for slot, piece in pieces.items():
            if (length := lengths[slot] + len(piece)) > self.max_length:
                raise UsageError(f"a sequence of {length} tokens; the engine holds {self.max_length}")
        logits = self.backend.run_step(make_step_inputs(self.backend.shape, pieces, lengths))
        for slot, piece in pieces.items():
            lengths[slot] += len(piece)
        self.lengths = lengths
        return logits[list(pieces)]
