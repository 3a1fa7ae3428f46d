"""When there is a trial and what it leaves; systemctl is a stand-in (tests/nix has a real systemd)."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from enginix.cli.serving import rollout as command
from enginix.errors import MachineError, UsageError
from enginix.machine.target import Machine, MachineGpu
from enginix.rollout import memory_headroom, trial

UNIT = "enginix-a.service"
STANDIN = """#!/bin/sh
echo "$@" >> {log}
case "$1 $2" in
"show --property=ActiveState") echo {state} ;;
"start "*) cat {units}/enginix-trial-a.service.d/trial.conf >> {log}; exit {status} ;;
esac
"""


@dataclass
class Host:
    """Directories of units, and a systemctl that notes what it is asked."""

    root: Path
    monkeypatch: pytest.MonkeyPatch
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.root / "log"
        self.log.touch()
        for name in ("incoming", "current", "run"):
            (self.root / name).mkdir()
        (self.root / "incoming" / UNIT).write_text("new")
        (self.root / "current" / UNIT).write_text("old")
        (self.root / "trial.conf").write_text("port=@port@\n")
        self.monkeypatch.setattr(trial, "RUNTIME_UNITS", self.root / "run")
        self.monkeypatch.setattr(trial.start_trial, "__defaults__", (self.root / "run",))

    def systemctl(self, *, state: str = "active", status: int = 0) -> None:
        tools = self.root / "bin"
        tools.mkdir()
        (tools / "systemctl").write_text(
            STANDIN.format(log=self.log, units=self.root / "run", state=state, status=status)
        )
        (tools / "journalctl").write_text("#!/bin/sh\necho the last line\n")
        for tool in tools.iterdir():
            tool.chmod(0o755)
        self.monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")

    def tries(self, *words: str) -> int:
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        parser.add_argument("--json", action="store_true")
        fixed = ["a", "--incoming", str(self.root / "incoming"), "--current", str(self.root / "current")]
        return command.run(parser.parse_args([*fixed, "--drop-in", str(self.root / "trial.conf"), *words]))

    @property
    def started(self) -> bool:
        return "start enginix-trial-a.service" in self.log.read_text()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_a_changed_server_is_tried(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.systemctl()
    assert host.tries("--needs", "1") == 0
    assert host.started
    assert capsys.readouterr().out == "passed\n"
    assert "@port@" not in host.log.read_text()
    assert list((host.root / "run").iterdir()) == []


def test_one_that_does_not_start_refuses_the_switch(host: Host) -> None:
    host.systemctl(status=1)
    with pytest.raises(
        trial.TrialError, match=r"did not start(.|\n)*the old one still serves(.|\n)*the last line"
    ) as e:
        host.tries("--needs", "1")
    assert e.value.exit_code == 1
    assert list((host.root / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("state", "words", "outcome"),
    [
        ("inactive", ["--needs", "1"], "none"),
        ("failed", ["--needs", "1"], "none"),
        ("active", ["--needs", "1", "--action", "boot"], "none"),
        ("active", ["--needs", str(2**40)], "no-room"),
        ("active", ["--gpus", "0"], "no-room"),
        ("active", ["--gpus", "0", "--needs", "1"], "no-room"),
    ],
)
def test_no_trial(
    host: Host, capsys: pytest.CaptureFixture[str], state: str, words: list[str], outcome: str
) -> None:
    host.systemctl(state=state)
    assert host.tries(*words) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{outcome}\n"
    assert ("NO TRIAL" in shown.err) == (outcome == "no-room")
    page = (Path(__file__).parents[3] / "docs/how-to/nixos.md").read_text("utf-8")
    assert outcome == "none" or shown.err.partition("If the ")[2].strip() in " ".join(page.split())
    assert not host.started


def test_an_unchanged_unit_is_not_tried(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.systemctl()
    (host.root / "current" / UNIT).write_text("new")
    assert host.tries("--needs", "1") == 0
    assert capsys.readouterr().out == "unchanged\n"
    assert not host.started


def test_leftovers_of_a_killed_trial_are_stopped_first(host: Host) -> None:
    host.systemctl()
    (host.root / "run" / "enginix-trial-a.service").write_text("left")
    assert host.tries("--needs", "1") == 0
    asked = host.log.read_text().splitlines()
    assert asked.index("stop enginix-trial-a.service") < asked.index("start enginix-trial-a.service")


def test_a_generation_without_the_unit(host: Host) -> None:
    host.systemctl()
    (host.root / "incoming" / UNIT).unlink()
    with pytest.raises(UsageError, match="no such unit"):
        host.tries("--needs", "1")


def machine(*free: int) -> Machine:
    gpus = (MachineGpu(i, "a GPU", f"GPU-{i}", 90, 1 << 40, f << 20) for i, f in enumerate(free))
    return Machine("600.1", None, tuple(gpus), "stand-in")


def test_the_fullest_gpu_counts() -> None:
    assert not memory_headroom.measure_gpu_headroom(["0", "GPU-1"], 500, machine(900, 400)).is_enough
    assert memory_headroom.measure_gpu_headroom(["0"], 500, machine(900, 400)).is_enough
    with pytest.raises(MachineError, match="there is no GPU 7"):
        memory_headroom.measure_gpu_headroom(["7"], 1, machine(900))


def test_files_are_counted_once(tmp_path: Path) -> None:
    base = memory_headroom.estimate_cpu_server(tmp_path)
    (tmp_path / "weights").write_bytes(bytes(3 << 20))
    (tmp_path / "again").symlink_to(tmp_path / "weights")
    assert memory_headroom.estimate_cpu_server(tmp_path) == base + 3


def test_a_kernel_that_does_not_tell(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 1 kB\n")
    with pytest.raises(MachineError, match="MemAvailable"):
        memory_headroom.measure_host_headroom(1, tmp_path / "meminfo")
