"""A watched command: progress, memory, nothing left behind; in the stand-in runtime and on the host."""

from __future__ import annotations

import os
import time

import pytest

from enginix.runtime import child
from enginix.runtime.supervise import KEPT_LINES, Watch, supervise_command
from retries import hold_once


@pytest.fixture(params=[True, False], ids=["image", "host"])
def place(request, make_sandbox):
    return make_sandbox(image=request.param)


def test_status_and_last_lines(place):
    outcome = supervise_command(place, ["sh", "-c", "seq 1000; echo bad >&2; exit 3"], Watch(), stage="t")
    assert outcome.status == 3 and not outcome.stalled
    assert len(outcome.lines) == KEPT_LINES and outcome.lines[-1] == "bad"


def test_death_by_signal(place):
    assert supervise_command(place, ["sh", "-c", "kill -9 $$"], Watch(), stage="t").status == 137


def test_silence_is_a_hang(place):
    outcome = supervise_command(place, ["sh", "-c", "echo up; sleep 1000"], Watch(stall=1.5), stage="t")
    assert outcome.stalled and outcome.lines == ["up"] and outcome.seconds < 300


def test_lines_are_progress(place):
    script = "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.2; done"

    def check():
        assert not supervise_command(place, ["sh", "-c", script], Watch(stall=1), stage="t").stalled

    hold_once(check)


def test_growing_output_is_progress(place, tmp_path):
    where = place.inside
    script = f"for i in 1 2 3 4 5 6 7 8; do echo $i >> {where}/grow; sleep 0.2; done"
    watch = Watch(stall=1, outputs=(place.work / "grow",))

    def check():
        assert not supervise_command(place, ["sh", "-c", script], watch, stage="t").stalled

    hold_once(check)
    assert supervise_command(place, ["sh", "-c", script], Watch(stall=0.6), stage="t").stalled


def test_memory_of_the_whole_tree_is_measured(place):
    script = 'python3 -c "x = bytearray(150 << 20); import time; time.sleep(1)" & wait'

    def check():
        outcome = supervise_command(place, ["sh", "-c", script], Watch(), stage="t")
        assert outcome.status == 0 and 140 << 20 < outcome.host_peak < 400 << 20

    hold_once(check)


def test_gpu_memory_is_the_most_that_was_seen(place):
    values = iter([10, 30, 20])

    def read_memory():
        value = next(values, 5)
        if value == 5:
            (place.work / "all").touch()
        return value

    script = f"until [ -e {place.inside}/all ]; do sleep 0.1; done"
    watch = Watch(gpu_memory=read_memory)
    assert supervise_command(place, ["sh", "-c", script], watch, stage="t").gpu_peak == 30


def test_a_process_that_leaves_the_group_is_ended(place):
    seconds = f"545{os.getpid()}"  # of this run alone
    supervise_command(place, ["sh", "-c", f"setsid sleep {seconds} & sleep 0.3"], Watch(), stage="t")
    left = [p for p in child.list_processes() if f"sleep\x00{seconds}" in command_of(p)]
    assert not left


def command_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as f:
            return f.read()
    except OSError:
        return ""


def test_garbage_and_endless_lines_do_no_harm(place):
    script = "head -c 300000 /dev/urandom; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo end"
    outcome = supervise_command(place, ["sh", "-c", script], Watch(), stage="t")
    assert outcome.status == 0 and outcome.lines[-1] == "end" and all(len(x) <= 4000 for x in outcome.lines)


def test_heartbeat(place, capsys):
    supervise_command(place, ["sleep", "1.5"], Watch(beat=0.5), stage="build")
    said = [x for x in capsys.readouterr().err.splitlines() if x.startswith("build:")]
    assert said and "memory at most" in said[0] and "last sign" in said[0]


def test_a_program_that_does_not_exist(place):
    begun = time.monotonic()
    try:
        assert supervise_command(place, ["no-such-program"], Watch(), stage="t").status != 0
    except child.MachineError as e:
        assert "No such file" in str(e)
    assert time.monotonic() - begun < 60
