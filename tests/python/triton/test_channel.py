"""The way from one model's process to the executor in another's: real sockets, a stand-in scheduler."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import enginix
from enginix.errors import MachineError, UsageError
from enginix.triton.models.channel import ChannelEvent, socket_path
from enginix.triton.models.channel_server import ChannelServer
from enginix.triton.models.remote_channel import RemoteChannel
from enginix.triton.models.served_channels import Generations, ServedChannel
from retries import hold_once

from .conftest import StandInOrder, StandInScheduler, until

ORDER = {
    "prompt": [11, 12, 13],
    "max_tokens": 5,
    "end_ids": [0, 5],
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "seed": 2**63 + 1,
    "min_tokens": 0,
    "repetition_penalty": 1.0,
    "logprobs": True,
}


@dataclass
class Both:
    """The executor's end, and another model's."""

    scheduler: StandInScheduler
    link: ChannelServer
    remote: RemoteChannel

    def hear(self, least: int = 1) -> list[ChannelEvent]:
        found: list[ChannelEvent] = []
        deadline = time.monotonic() + 300
        while len(found) < least:
            assert time.monotonic() < deadline, found
            found += self.remote.receive(0.05) or []
        return found


@pytest.fixture
def both(meeting_place: Path) -> Iterator[Both]:
    scheduler = StandInScheduler()
    generations = Generations(scheduler, StandInOrder, capacity=2)
    remote = RemoteChannel(socket_path())
    link = ChannelServer(generations, socket_path())
    assert remote.receive(0.05) == []
    made = Both(scheduler, link, remote)
    yield made
    remote.close()
    assert remote.receive(1) is None
    made.link.close()


def test_an_order_arrives_as_it_was_given_and_its_events_return(both: Both) -> None:
    both.remote.add("7", ORDER, "mine")
    until(lambda: bool(both.scheduler.orders))
    (order,) = both.scheduler.orders
    assert order == StandInOrder(
        **{**ORDER, "id": "7", "prompt": (11, 12, 13), "end_ids": frozenset({0, 5})}  # type: ignore[arg-type]
    )
    both.scheduler.say(21, 22, finish="stop")
    assert both.hear(2) == [ChannelEvent("7", 21, -0.5, None), ChannelEvent("7", 22, -0.5, "stop")]


def test_what_a_step_says_of_many_comes_in_one_message(both: Both) -> None:
    for number in ("1", "2"):
        both.remote.add(number, ORDER, "")
    until(lambda: len(both.scheduler.orders) == 2)
    told: list[int] = []
    tell = ServedChannel.tell
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ServedChannel, "tell", lambda self, events: (told.append(len(events)), tell(self, events))
        )
        after, both.scheduler.after_step = both.scheduler.after_step, lambda: None
        both.scheduler.say(21, order=0)
        both.scheduler.say(31, order=1)
        assert both.remote.receive(0.05) == []
        after()
        both.scheduler.after_step = after
    assert both.hear(2) == [ChannelEvent("1", 21, -0.5, None), ChannelEvent("2", 31, -0.5, None)]
    assert told == [2]


def test_all_that_waits_comes_at_once(both: Both) -> None:
    both.remote.add("1", ORDER, "")
    until(lambda: bool(both.scheduler.orders))

    def check() -> None:
        both.scheduler.say(*range(100))
        time.sleep(0.2)
        first = both.remote.receive(1) or []
        rest = both.hear(100 - len(first))
        assert [event.token for event in first + rest] == list(range(100))
        assert not rest

    hold_once(check)


def test_cancelling(both: Both) -> None:
    both.remote.add("1", ORDER, "")
    until(lambda: bool(both.scheduler.orders))
    both.remote.cancel("of somebody else")
    both.remote.cancel("1")
    until(lambda: bool(both.scheduler.cancelled))
    assert both.scheduler.cancelled == ["1"]


def test_a_channel_cancels_nothing_of_another_s(both: Both) -> None:
    other = RemoteChannel(socket_path())
    assert other.receive(0.05) == []
    both.remote.add("1", ORDER, "")
    until(lambda: bool(both.scheduler.orders))
    other._numbers.add("1")  # whatever it believes
    other.cancel("1")
    other.add("2", ORDER, "")
    until(lambda: len(both.scheduler.orders) == 2)
    assert both.scheduler.cancelled == []
    other.close()
    assert other.receive(1) is None
    # Its own end with it.
    until(lambda: both.scheduler.cancelled == ["2"])


@pytest.mark.parametrize(
    ("refuse", "finish", "why"),
    [
        (UsageError("token 900 is not in the vocabulary"), "refused", "token 900 is not in the vocabulary"),
        (RuntimeError("odd"), "error", "RuntimeError: odd"),
    ],
)
def test_what_the_scheduler_refuses_is_told(both: Both, refuse: Exception, finish: str, why: str) -> None:
    both.scheduler.refuse = refuse
    both.remote.add("1", ORDER, "")
    assert both.hear() == [ChannelEvent("1", None, None, finish, why)]


def test_the_limit_is_that_of_all_channels(both: Both) -> None:
    for number in ("1", "2", "3"):
        both.remote.add(number, ORDER, "")
    (event,) = both.hear()
    assert (event.number, event.finish) == ("3", "full")
    assert "2 requests are running or waiting already" in str(event.error)
    both.scheduler.say(21, finish="length", order=0)
    both.hear()
    both.remote.add("4", ORDER, "")
    until(lambda: len(both.scheduler.orders) == 3)


def test_a_client_s_name_stops_what_came_over_a_channel(both: Both) -> None:
    both.remote.add("1", ORDER, "mine")
    both.remote.add("2", ORDER, "")
    until(lambda: len(both.scheduler.orders) == 2)
    generations = both.link._generations
    generations.stop("")
    generations.stop("stranger")
    generations.stop("mine")
    assert both.scheduler.cancelled == ["1"]


def test_an_executor_that_ends_is_told_and_a_new_one_is_found(both: Both) -> None:
    both.remote.add("1", ORDER, "")
    until(lambda: bool(both.scheduler.orders))
    both.link.close()
    (event,) = both.hear()
    assert (event.number, event.finish) == ("1", "error")
    assert "tensorrt_llm, which computes, is not reached any more" in str(event.error)
    assert both.remote.receive(0) == []
    scheduler = StandInScheduler()
    both.link = ChannelServer(Generations(scheduler, StandInOrder), socket_path())
    both.remote.receive(1)
    both.remote.add("2", ORDER, "")
    until(lambda: bool(scheduler.orders))


def test_an_executor_that_ends_while_nothing_is_asked_is_found_again(both: Both) -> None:
    both.link.close()
    assert both.remote.receive(1) == []
    scheduler = StandInScheduler()
    both.link = ChannelServer(Generations(scheduler, StandInOrder), socket_path())
    assert both.remote.receive(1) == []
    both.remote.add("2", ORDER, "")
    until(lambda: bool(scheduler.orders))


def test_an_order_that_is_too_large_is_refused_alone(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    both.remote.add("1", ORDER, "")
    until(lambda: bool(both.scheduler.orders))
    with monkeypatch.context() as patch:
        patch.setattr("enginix.triton.models.remote_channel.LARGEST", 1000)
        both.remote.add("2", {**ORDER, "prompt": [1] * 1000}, "")
    (event,) = both.hear()
    assert (event.number, event.finish) == ("2", "refused")
    both.scheduler.say(21, finish="length")
    assert both.hear() == [ChannelEvent("1", 21, -0.5, "length")]


def test_an_executor_out_of_files_accepts_later(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    accept, failed = socket.socket.accept, threading.Event()

    def refuse(self: socket.socket) -> Any:
        if not failed.is_set():
            accept(self)[0].close()
            failed.set()
            raise OSError(24, "Too many open files")
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", refuse)
    for _ in range(2):  # the first ends the accept that waits already
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(str(socket_path()))
            time.sleep(0.1)
    until(failed.is_set)
    remote = RemoteChannel(socket_path())
    assert remote.receive(1) == []
    remote.add("1", ORDER, "")
    until(lambda: bool(both.scheduler.orders))
    remote.close()


def test_without_an_executor_a_request_is_refused(
    meeting_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginix.triton.models.remote_channel.REACHED", 0.01)
    remote = RemoteChannel(socket_path())
    remote.add("1", ORDER, "")
    (event,) = remote.receive(0) or []
    assert event.finish == "full"
    assert "tensorrt_llm, which computes, is not reached" in str(event.error)
    remote.close()
    socket_path().parent.rmdir()


def test_a_request_waits_for_an_executor_that_is_being_loaded(meeting_place: Path) -> None:
    remote, scheduler = RemoteChannel(socket_path()), StandInScheduler()
    receiving = threading.Thread(target=lambda: [None for _ in iter(lambda: remote.receive(60), None)])
    receiving.start()
    asking = threading.Thread(target=remote.add, args=("1", ORDER, ""))
    asking.start()
    time.sleep(0.1)
    link = ChannelServer(Generations(scheduler, StandInOrder), socket_path())
    until(lambda: bool(scheduler.orders))
    remote.close()
    for thread in (asking, receiving):
        thread.join(60)
        assert not thread.is_alive()
    link.close()


def test_a_process_that_is_killed_leaves_nothing_running(both: Both) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from enginix.triton.models.remote_channel import RemoteChannel\n"
        "remote = RemoteChannel(Path(sys.argv[1])); remote.receive(0)\n"
        f"remote.add('9', {ORDER!r}, '')\n"
        "while True: remote.receive(1)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(enginix.__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-c", script, str(socket_path())], env=env)
    until(lambda: bool(both.scheduler.orders))
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: both.scheduler.cancelled == ["9"])


@pytest.mark.parametrize("noise", [b"", b"\0\0\0\5hello", b"\xff" * 64, b"\0\0\0\2{}", b"\0\0\0\4null"])
def test_noise_closes_its_own_channel_alone(both: Both, noise: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as strange:
        strange.connect(str(socket_path()))
        strange.sendall(noise)
        strange.shutdown(socket.SHUT_WR)
        strange.settimeout(60)
        with contextlib.suppress(ConnectionResetError):  # closed with something unread
            assert strange.recv(1) == b""
    both.remote.add("1", ORDER, "")
    until(lambda: bool(both.scheduler.orders))


def test_a_process_that_reads_nothing_is_cut_off(both: Both) -> None:
    """The executor waits for it a second, once, and serves the others on."""
    with socket.socket(socket.AF_UNIX) as stalled:
        stalled.connect(str(socket_path()))
        message = json.dumps({"add": "9", "order": ORDER, "client": ""}).encode()
        stalled.sendall(struct.pack("!i", len(message)) + message)
        until(lambda: bool(both.scheduler.orders))
        both.remote.add("1", ORDER, "")
        until(lambda: len(both.scheduler.orders) == 2)
        start = time.monotonic()
        for _ in range(100):
            both.scheduler.say(*range(1000), order=0)
        assert time.monotonic() - start < 60
        until(lambda: both.scheduler.cancelled == ["9"])
    both.scheduler.say(21, finish="length", order=1)
    assert both.hear() == [ChannelEvent("1", 21, -0.5, "length")]


def test_a_new_executor_takes_the_place_and_the_old_one_leaves_it(meeting_place: Path) -> None:
    old, new = (StandInScheduler() for _ in range(2))
    first = ChannelServer(Generations(old, StandInOrder), socket_path())
    second = ChannelServer(Generations(new, StandInOrder), socket_path())
    first.close()
    remote = RemoteChannel(socket_path())
    assert remote.receive(0.05) == []
    remote.add("1", ORDER, "")
    until(lambda: bool(new.orders))
    remote.close()
    second.close()


def test_the_place_is_private(meeting_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = socket_path().parent
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.chmod(0o755)
    with pytest.raises(MachineError, match="not a private directory of this user"):
        socket_path()
    directory.rmdir()
    directory.symlink_to("/")
    with pytest.raises(MachineError, match="not a private directory"):
        socket_path()
    directory.unlink()
    long = meeting_place / ("d" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(MachineError, match="too long for a socket"):
        socket_path()
    socket_directory: Any = next(long.iterdir())
    socket_directory.rmdir()
    long.rmdir()
