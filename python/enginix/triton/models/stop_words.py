"""Match stop words as token sequences across chunks, without showing any part of them."""

from __future__ import annotations

from collections.abc import Sequence


class StopWords:
    """Finds stop words in a stream of ids and holds back what may become one.

    Args:
        words: each a sequence of ids, not empty.
    """

    def __init__(self, words: Sequence[Sequence[int]]) -> None:
        self._words = [tuple(w) for w in words if w]
        self._held: list[int] = []

    def push(self, token: int) -> tuple[list[int], bool]:
        """Take the next id; return the ids that can be shown now, and whether a stop word is complete."""
        self._held.append(token)
        for word in self._words:
            if tuple(self._held[-len(word) :]) == word:
                visible_ids = self._held[: -len(word)]
                self._held = []
                return visible_ids, True
        keep = max((self._overlap(word) for word in self._words), default=0)
        cut = len(self._held) - keep
        visible_ids, self._held = self._held[:cut], self._held[cut:]
        return visible_ids, False

    def flush(self) -> list[int]:
        """Return the ids that were held back, when the text ends without a stop word."""
        held_ids, self._held = self._held, []
        return held_ids

    def _overlap(self, word: tuple[int, ...]) -> int:
        """Return the length of the longest end of the held ids that begins ``word``."""
        longest = min(len(word) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if tuple(self._held[-n:]) == word[:n]), 0)


def unpack_stop_words(ids: Sequence[int], ends: Sequence[int]) -> list[tuple[int, ...]]:
    """Unpack words from TensorRT-LLM's two rows: all ids flat, and the cumulative ends, padded with -1.

    Raises:
        ValueError: the ends do not increase, or exceed the number of ids.
    """
    words: list[tuple[int, ...]] = []
    start = 0
    for end in ends:
        if end < 0:
            break
        if not start < end <= len(ids):
            raise ValueError(f"stop_words_list: end {end} is not between {start + 1} and {len(ids)}")
        words.append(tuple(ids[start:end]))
        start = end
    return words
