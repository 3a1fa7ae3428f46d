"""The corpus of locks edited by hand, as the parser takes it; tests/nix/cases/datasets.sh evaluates it."""

from __future__ import annotations

import json
import unicodedata

import pytest

from enginix.errors import LockError
from enginix.hub import lock
from enginix.tables import load_table
from hub.lock_corpus import CORPUS


@pytest.mark.parametrize("name", CORPUS)
def test_the_parser_takes_what_it_should(name: str) -> None:
    text = json.dumps(CORPUS[name]["lock"])
    if CORPUS[name]["takes"] == "neither":
        with pytest.raises(LockError):
            lock.parse_lock(text, name)
    else:
        lock.parse_lock(text, name)


def test_the_letters_of_evaluation_are_written_in_one_way_only() -> None:
    letters = load_table("lock")["letters"]
    assert {"ä", "Ä", "ß", "я"} <= set(letters)
    for letter, folded in letters.items():
        assert letter.isprintable() and not letter.isascii() and len(letter) == 1
        assert unicodedata.normalize("NFC", letter) == letter and not unicodedata.combining(letter)
        assert unicodedata.normalize("NFC", letter).casefold() == folded
