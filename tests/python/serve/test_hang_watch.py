"""Processes that live and do nothing are noticed; slow ones, and idle ones, are not taken for them."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest

from enginix.serve.hang_watch import ASKED_EVERY, HUNG_LOOKS, HangWatch
from enginix.triton.contract import HEARTBEATS
from enginix.triton.models import heartbeat, served_channels
from enginix.triton.models.heartbeat import HeartbeatFile
from enginix.triton.models.served_channels import Generations, LocalChannel


def test_a_process_without_a_sign_of_life_is_named(tmp_path: Path) -> None:
    watch = HangWatch(tmp_path, lambda: True)
    executor, ensemble = tmp_path / "tensorrt_llm-1", tmp_path / "ensemble-2"
    for look in range(HUNG_LOOKS):
        ensemble.write_text(str(look))
        executor.write_text("1")
        assert watch.find_hung() is None
    ensemble.write_text("x")
    assert watch.find_hung() == "tensorrt_llm"


def test_a_sign_of_life_begins_the_count_anew(tmp_path: Path) -> None:
    watch = HangWatch(tmp_path, lambda: True)
    sign = tmp_path / "ensemble-2"
    for look in range(4 * HUNG_LOOKS):
        if look % (HUNG_LOOKS - 1) == 0:
            sign.write_text(str(look))
        assert watch.find_hung() is None


def test_a_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    answers = [True, *[False] * (HUNG_LOOKS // ASKED_EVERY)]
    watch = HangWatch(tmp_path, lambda: answers.pop(0))
    found = [watch.find_hung() for _ in range(ASKED_EVERY + HUNG_LOOKS)]
    assert found[:-1] == [None] * (len(found) - 1) and found[-1] == "tritonserver"


@pytest.fixture
def signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(heartbeat, "PERIOD", 0.0)
    return tmp_path / HEARTBEATS


def test_only_a_supervised_process_writes_signs(signs: Path) -> None:
    HeartbeatFile("ensemble").beat()
    assert not signs.exists()
    signs.mkdir()
    written = HeartbeatFile("ensemble")
    written.beat()
    (file,) = signs.iterdir()
    first = file.read_text()
    written.beat()
    assert file.name.startswith("ensemble-") and file.read_text() != first


class _StandInScheduler:
    """Takes requests, and never does a step."""

    def add(self, request: object, sink: object) -> None:
        self.sink = sink

    def after_step(self) -> None: ...


def test_a_scheduler_that_does_no_step_stops_the_signs(signs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_channels, "LONGEST_STEP", 0.05)
    signs.mkdir()
    scheduler = _StandInScheduler()
    generations = Generations(scheduler, lambda **fields: fields)
    sign = HeartbeatFile("tensorrt_llm", generations.is_stuck)
    time.sleep(0.1)
    sign.beat()  # idle is not stuck
    (file,) = signs.iterdir()
    assert file.read_text() == "1"
    LocalChannel(generations).add("1", {"prompt": [1], "end_ids": []}, "")
    time.sleep(0.1)
    sign.beat()
    assert generations.is_stuck() and file.read_text() == "1"
    scheduler.after_step()
    sign.beat()
    assert not generations.is_stuck() and file.read_text() == "2"
