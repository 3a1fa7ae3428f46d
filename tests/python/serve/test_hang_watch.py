"""Processes that live and do nothing are noticed; slow ones, and idle ones, are not taken for them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from enginix.serve.hang_watch import ASKED_EVERY, HUNG_LOOKS, HangWatch
from enginix.triton.contract import HEARTBEATS
from enginix.triton.models import heartbeat, served_channels
from enginix.triton.models.heartbeat import HeartbeatFile
from enginix.triton.models.served_channels import Generations, LocalChannel


def test_a_process_without_a_sign_of_life_is_named(tmp_path: Path) -> None:
    watch = HangWatch(tmp_path, lambda: True)
    executor, ensemble = tmp_path / "tensorrt_llm-1", tmp_path / "ensemble-2"
    for file in (executor, ensemble):
        file.touch()
    for look in range(HUNG_LOOKS):
        os.utime(ensemble, ns=(look, look))
        assert watch.find_hung() is None
    os.utime(ensemble, ns=(-1, -1))
    assert watch.find_hung() == "tensorrt_llm"


def test_a_sign_of_life_begins_the_count_anew(tmp_path: Path) -> None:
    watch = HangWatch(tmp_path, lambda: True)
    sign = tmp_path / "ensemble-2"
    sign.touch()
    for look in range(4 * HUNG_LOOKS):
        if look % (HUNG_LOOKS - 1) == 0:
            os.utime(sign, ns=(look, look))
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
    written.beat()
    assert file.name.startswith("ensemble-") and file.stat().st_mtime_ns == 2
    assert file.stat().st_mode & 0o077 == 0 and file.stat().st_size == 0


class _StandInScheduler:
    """Takes requests, and never does a step."""

    def add(self, request: object, sink: object) -> None:
        self.sink = sink

    def after_step(self) -> None: ...


def test_a_scheduler_that_does_no_step_stops_the_signs(signs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(served_channels, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    signs.mkdir()
    scheduler = _StandInScheduler()
    generations = Generations(scheduler, lambda **fields: fields)
    sign = HeartbeatFile("tensorrt_llm", generations.is_stuck)
    clock[0] += 2 * served_channels.LONGEST_STEP
    sign.beat()  # idle is not stuck
    (file,) = signs.iterdir()
    assert file.stat().st_mtime_ns == 1
    LocalChannel(generations).add("1", {"prompt": [1], "end_ids": []}, "")
    clock[0] += 2 * served_channels.LONGEST_STEP
    sign.beat()
    assert generations.is_stuck() and file.stat().st_mtime_ns == 1
    scheduler.after_step()
    sign.beat()
    assert not generations.is_stuck() and file.stat().st_mtime_ns == 2


def test_a_full_disk_stops_no_sign(signs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sign must not need room: the server would be ended for want of it."""
    signs.mkdir()
    sign = HeartbeatFile("ensemble")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    monkeypatch.setattr("builtins.open", full)
    sign.beat()
    sign.beat()
    (file,) = signs.iterdir()
    assert file.stat().st_mtime_ns == 2
