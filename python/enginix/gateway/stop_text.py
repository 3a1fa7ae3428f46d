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
        self._words = [_StopWord(word) for word in words]
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """Take a piece; return the text that can be shown now, and whether a stop word ended the answer."""
        if not self._words:
            return piece, False
        text = self._held + piece
        for position in range(len(self._held), len(text)):
            sizes = [word.size for word in self._words if word.follow(text[position])]
            if sizes:
                self._held = ""
                return text[: position + 1 - max(sizes)], True
        keep = max(word.matched for word in self._words)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """Return the text that was held back, when the answer ends without a stop word."""
        held_text, self._held = self._held, ""
        return held_text


class _StopWord:
    """One text, searched for in constant time a character: Knuth, Morris and Pratt's algorithm.

    Attributes:
        matched: characters of the word that the text so far ends with.
    """

    def __init__(self, word: str) -> None:
        self._word, self.size, self.matched = word, len(word), 0
        # Of each beginning of the word: the longest shorter one that it ends with.
        self._borders = [0]
        for character in word[1:]:
            self._borders.append(self._extend(self._borders[-1], character))

    def follow(self, character: str) -> bool:
        """Take the next character of the text; tell whether the word is complete."""
        self.matched = self._extend(self.matched, character)
        return self.matched == self.size

    def _extend(self, matched: int, character: str) -> int:
        while matched and self._word[matched] != character:
            matched = self._borders[matched - 1]
        return matched + 1 if self._word[matched] == character else 0
