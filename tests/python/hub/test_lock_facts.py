"""A lock's facts are those of the configuration that it pins, or it is not fetched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub_support import REPO

from enginix.errors import LockError
from enginix.hub.fetch import fetch_locked_files
from enginix.hub.lock import Selection
from enginix.hub.locking import make_lock
from hub import Hub

Start = Callable[..., Hub]


@pytest.mark.parametrize(
    "lie",
    [
        {"layers": 400},
        {"heads": -3},
        {"layers": True},
        {"layers": 4.0},
        {"attentionWindow": [4096]},
        {"quantization": "FP8"},
        {"vocabulary": "many"},
        {"architecture": "LlamaForCausalLM"},
        {"architecture": None},
        {"made up": 1},
    ],
)
@pytest.mark.parametrize("fetched", [False, True], ids=["new", "there already"])
def test_a_fact_that_the_configuration_does_not_say(
    start: Start, model: Path, tmp_path: Path, lie: dict[str, Any], fetched: bool
) -> None:
    start(model)
    lock = make_lock(REPO, Selection()).lock
    if fetched:
        fetch_locked_files(lock, tmp_path / "out")
        before = (tmp_path / "out" / "enginix.json").read_bytes()
    with pytest.raises(LockError, match=f"model.{next(iter(lie))} is "):
        fetch_locked_files(replace(lock, model={**lock.model, **lie}), tmp_path / "out")
    if fetched:
        assert (tmp_path / "out" / "enginix.json").read_bytes() == before
    else:
        assert not (tmp_path / "out").exists()
    # Another lock of the same files goes on from what was fetched.
    assert fetch_locked_files(lock, tmp_path / "out").moved == 0


def test_facts_of_a_configuration_that_is_not_pinned(start: Start, model: Path, tmp_path: Path) -> None:
    start(model)
    lock = make_lock(REPO, Selection(exclude=("config.json",))).lock
    assert not lock.model
    with pytest.raises(LockError, match="has no such value"):
        fetch_locked_files(replace(lock, model={"layers": 4}), tmp_path / "out")


def test_facts_that_older_locks_lack_or_have_too_many(start: Start, model: Path, tmp_path: Path) -> None:
    start(model)
    lock = make_lock(REPO, Selection()).lock
    new = ("tiedEmbeddings", "attentionWindow")
    older = {k: v for k, v in lock.model.items() if k not in new} | {"slidingWindow": 4096}
    assert fetch_locked_files(replace(lock, model=older), tmp_path / "out").files
