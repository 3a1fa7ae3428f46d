"""The page of damages names every kind that the script makes, and no damage that passes all gates."""

from __future__ import annotations

from .damage_table import BEGIN, END, PAGE, list_kinds, read_kinds


def test_the_page_has_every_kind_of_damage() -> None:
    page = PAGE.read_text()
    assert read_kinds(page) == list_kinds()
    assert len(list_kinds()) >= 40
    table = page.split(BEGIN)[1].split(END)[0]
    assert "PASSES" not in table and "0 pass: none" in table
