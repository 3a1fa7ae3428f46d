"""Whoever changes an engine or a repository after it was made is refused."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from .conftest import Stages

sys.path.insert(0, str(Path(__file__).parent))
import tampering


@pytest.mark.parametrize("kind", tampering.TAMPERINGS, ids=lambda t: t.what)
def test_a_change_is_refused_before_anything_is_served(
    whole: Stages, kind: tampering.Tampering, capsys: pytest.CaptureFixture[str]
) -> None:
    with tampering.copy_stages(whole.engine) as root:
        assert not tampering.is_refused("serve", root)
        kind.change(root)
        assert tampering.is_refused("serve", root) and tampering.is_refused("verify", root)
        if kind.of == "engine":
            assert all(tampering.is_refused(command, root) for command in ("check", "gate", "triton-repo"))


@pytest.mark.slow
def test_a_change_of_any_byte_is_refused(whole: Stages) -> None:
    with tampering.copy_stages(whole.engine) as root:
        assert tampering.change_random_bytes(root, 100, random.Random(5)) == []


def test_the_page_has_the_table() -> None:
    """The table is made by the script; here only that no kind passes in it, and that none is missing."""
    text = tampering.PAGE.read_text().partition(tampering.BEGIN)[2].partition(tampering.END)[0]
    assert "passes" not in text and "1000 changes of a byte" in text and ": 1000 refused" in text
    assert all(f"| {kind.what} | {kind.of} | refused" in text for kind in tampering.TAMPERINGS)
