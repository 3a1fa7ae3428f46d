"""OpenAI's ``stop``: texts that end an answer, across tokens and pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Finds the first of several texts in a text that comes in pieces, and holds back what may become one.

    The result does not depend on how the text is cut: the text that is complete first ends the answer, and
    of those that end at the same character the longest.

    Args:
        words: texts that are not empty.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._words = tuple(words)
        self._longest = max(map(len, self._words), default=0)
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """Take a piece; return the text that can be shown now, and whether a stop word ended the answer."""
        if not self._words:
            return piece, False
        text = self._held + piece
        ends = [
            (position + len(word), position) for word in self._words if (position := text.find(word)) >= 0
        ]
        if ends:
            _, start = min(ends)
            self._held = ""
            return text[:start], True
        keep = self._overlap(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """Return the text that was held back, when the answer ends without a stop word."""
        held_text, self._held = self._held, ""
        return held_text

    def _overlap(self, text: str) -> int:
        """Return the length of the longest end of the text that begins a word."""
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[-size:]
            if any(len(word) > size and word.startswith(end) for word in self._words):
                return size
        return 0
