"""Refuse prompts that a model cannot process, whatever executes it."""

from __future__ import annotations

from collections.abc import Sequence

from enginix.errors import UsageError


def check_prompt_tokens(tokens: Sequence[int], most: int, vocab_size: int, what: str) -> None:
    """Refuse a prompt that cannot be processed.

    Args:
        most: tokens of a prompt.
        what: accepts no more: ``the model``.

    Raises:
        UsageError: empty, too long, or with a token outside the vocabulary.
    """
    if not tokens:
        raise UsageError("empty prompt", fix="send at least one token")
    if len(tokens) > most:
        raise UsageError(f"prompt of {len(tokens)} tokens, {what} accepts at most {most}")
    outside = [t for t in tokens if not 0 <= t < vocab_size]
    if outside:
        raise UsageError(f"token {outside[0]} is outside the vocabulary of {vocab_size}")
