from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginix.triton.models.stop_words import StopWords, unpack_stop_words

TOKENS = st.integers(0, 3)  # few, so that matches and near matches abound
WORDS = st.lists(st.lists(TOKENS, min_size=1, max_size=3), max_size=3)


def pack(words: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """As TensorRT-LLM packs words: all ids, and where each word ends, padded with -1."""
    ids = [i for word in words for i in word]
    ends: list[int] = []
    for word in words:
        ends.append((ends[-1] if ends else 0) + len(word))
    return ids, ends + [-1] * (len(ids) - len(ends))


def first_stop(words: list[list[int]], tokens: list[int]) -> list[int] | None:
    """By definition: what is before the first stop word to be complete; of several, the first listed."""
    for end in range(1, len(tokens) + 1):
        for word in words:
            if len(word) <= end and tokens[end - len(word) : end] == word:
                return tokens[: end - len(word)]
    return None


@given(WORDS, st.lists(TOKENS, max_size=12))
def test_shows_what_is_before_the_stop_word_and_nothing_of_it(
    words: list[list[int]], tokens: list[int]
) -> None:
    stops, shown, stopped = StopWords(words), [], False
    for token in tokens:
        ready, stopped = stops.push(token)
        shown += ready
        if stopped:
            break
    expected = first_stop(words, tokens)
    if expected is None:
        assert not stopped
        assert shown + stops.flush() == tokens
    else:
        assert stopped
        # A word that lies inside what a longer one held back may cut less than was held, never more than is
        # right.
        assert shown == expected


def test_holds_back_no_more_than_what_may_become_a_word() -> None:
    stops = StopWords([[1, 2, 3]])
    assert stops.push(1) == ([], False)
    assert stops.push(1) == ([1], False)
    assert stops.push(2) == ([], False)
    assert stops.push(4) == ([1, 2, 4], False)


@given(WORDS)
def test_pack_and_unpack(words: list[list[int]]) -> None:
    ids, ends = pack(words)
    assert len(ids) == len(ends)
    assert unpack_stop_words(ids, ends) == [tuple(w) for w in words]


@pytest.mark.parametrize("ends", [[3], [0], [2, 1], [2, 2]])
def test_impossible_ends_are_refused(ends: list[int]) -> None:
    with pytest.raises(ValueError, match="stop_words_list"):
        unpack_stop_words([5, 6], ends)


@given(st.lists(TOKENS, max_size=5), st.lists(st.integers(-3, 9), max_size=5))
def test_garbage_rows_never_crash(ids: list[int], ends: list[int]) -> None:
    try:
        words = unpack_stop_words(ids, ends)
    except ValueError:
        return
    assert [i for w in words for i in w] == ids[: sum(map(len, words))]
