"""Words of messages: articles, numbers with nouns, the nearest known name."""

from __future__ import annotations

from collections.abc import Iterable

# Abbreviations whose first letter's name starts with a vowel: "an FP8 checkpoint".
_AN_LETTERS = "AEFHILMNORSX"


def with_article(noun: str) -> str:
    """Put ``a`` or ``an`` before a noun: ``an engine``, ``an FP8 checkpoint``."""
    first = noun[:1]
    # MIXED is read as a word, FP8 letter by letter.
    spelled = (noun[1:2].isupper() and noun[1:2] not in "AEIOU") or noun[1:2].isdigit()
    vowel = first.upper() in _AN_LETTERS if first.isupper() and spelled else first.lower() in "aeiou"
    return f"{'an' if vowel else 'a'} {noun}"


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message; empty without a message."""
    return (str(error).strip().splitlines() or [""])[0]


def count_noun(number: int, noun: str) -> str:
    """Put a number before its noun: ``1 gate``, ``2 gates``."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def find_nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name that is most like ``name``, in whatever case; None where none is like it."""
    import difflib

    folded: dict[str, str] = {}
    for candidate in known:
        folded.setdefault(candidate.casefold(), candidate)
    word = name.casefold()
    # An abbreviation: trt of tensorrt.
    short = [c for c in folded if word[:1] == c[:1] and 2 < len(word) < 5 <= len(c) and _is_spread(word, c)]
    matches = short[:1] or difflib.get_close_matches(word, list(folded), 5, cutoff)
    # The first letter is rarely mistyped, and a mistyped one keeps the length: h201 is h200 rather than h20.
    matches.sort(key=lambda c: (_count_edits(word, c), c[:1] != word[:1], len(c) != len(word)))
    return folded[matches[0]] if matches else None


def _count_edits(a: str, b: str) -> int:
    """Return the letters to insert, remove or replace (Levenshtein's distance)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def _is_spread(letters: str, word: str) -> bool:
    """Tell whether a word has these letters in this order."""
    rest = iter(word)
    return all(letter in rest for letter in letters)


def suggest_name(name: str, known: Iterable[str], otherwise: str = "", cutoff: float = 0.6) -> str:
    """``did you mean X?`` with the nearest known name; ``otherwise`` where none is near."""
    near = find_nearest(name, known, cutoff)
    return f"did you mean {near}?" if near else otherwise


def list_known(name: str, known: Iterable[str]) -> str:
    """All known names, after the nearest one: ``did you mean X? known: X, Y``."""
    names = list(known)
    return f"{suggest_name(name, names)} known: {', '.join(names)}".strip()
