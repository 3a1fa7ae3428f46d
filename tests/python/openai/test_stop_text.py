"""``stop`` is text: the same ends, whatever pieces a text comes in."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from enginix.gateway.request import MAX_STOP_CHARACTERS, MAX_STOP_WORDS
from enginix.gateway.stop_text import StopText


def shown(words: list[str], pieces: list[str]) -> tuple[str, bool]:
    stop, text = StopText(words), ""
    for piece in pieces:
        more, stopped = stop.push(piece)
        text += more
        if stopped:
            return text, True
    return text + stop.flush(), False


def by_character(words: list[str], text: str) -> tuple[str, bool]:
    """The definition: character after character, until a word is complete."""
    for end in range(1, len(text) + 1):
        complete = [w for w in words if text[:end].endswith(w)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@given(
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4),
    st.lists(st.text("ab\n", max_size=5), max_size=10),
)
@example(["abc", "b"], ["abc"])
@example(["aab"], ["a", "a", "a", "b"])
@example(["ab", "aab"], ["aab"])
def test_it_is_the_definition_however_the_text_is_cut(words: list[str], pieces: list[str]) -> None:
    assert shown(words, pieces) == by_character(words, "".join(pieces))


# The test model's continuation of "Once", and the words of it that are no tokens as they stand.
PIECES = [" the", " number", " of", " the", "\n", "  ", " mult"]


@pytest.mark.parametrize("word", ["of", "number", "mult", "the\n", "ber of", "he", "\n ", " of", "\n"])
def test_words_that_are_no_tokens(word: str) -> None:
    text = "".join(PIECES)
    assert shown([word], PIECES) == (text[: text.index(word)], True)


def test_what_may_become_a_word_is_held_back_and_no_more() -> None:
    stop = StopText(["Observation:"])
    assert stop.push("x Obs") == ("x ", False)
    assert stop.push("cure") == ("Obscure", False)
    assert stop.push(" O") == (" ", False)
    assert stop.flush() == "O"


def test_many_long_words_take_no_time() -> None:
    """As many and as long as one request may have, on a text that begins all of them over and over."""
    words = ["a" * (MAX_STOP_CHARACTERS - 1) + chr(ord("b") + i) for i in range(MAX_STOP_WORDS)]
    begin = time.process_time()
    assert shown(words, ["a" * 5] * 400) == ("a" * 2000, False)
    # Trying all beginnings anew with each piece took minutes.
    assert time.process_time() - begin < 5
