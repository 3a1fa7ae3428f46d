"""The tables of docs/checkpoints.md are those that the tests' own run makes."""

from __future__ import annotations

import pytest
from golden_table import DOCS, render


@pytest.mark.slow
def test_tables_are_current() -> None:
    text = DOCS.read_text("utf-8")
    assert render(text) == text, "run: python tests/python/checkpoint/golden_table.py"
