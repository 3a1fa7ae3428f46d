"""The generated tables of the pages on checkpoints are those that the tests' own run makes."""

from __future__ import annotations

import pytest
from golden_table import DOCS, PAGES, render


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_tables_are_current(page: str) -> None:
    text = (DOCS / page).read_text("utf-8")
    assert render(page, text) == text, "run: python tests/python/checkpoint/golden_table.py"
