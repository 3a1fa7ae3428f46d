"""Runs the stages that are not there yet, then the servers, until it is interrupted."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import enginix
from enginix import console
from enginix.console import format_bytes
from enginix.ending import SignalReceived
from enginix.errors import EXIT_OK, EXIT_USAGE, EnginixError, InterruptedWork, MachineError
from enginix.ports import is_port_of
from enginix.process_group import end_with_parent, list_descendants, signal_group
from enginix.up.stages import Stage
from enginix.work_directory import is_being_written

# Seconds between two lines of a log about servers that start.
TICK = 30.0


class StageFailed(EnginixError):
    """A stage ended with an error, which it has printed; its exit status is handed on."""

    kind = "stage"

    def __init__(self, stage: str, status: int) -> None:
        super().__init__(
            f"{stage} ended with status {status}",
            fix="mend what it says above, then run the same command again: finished stages are kept",
        )
        self.exit_code = status  # type: ignore[misc]


@dataclass(frozen=True)
class StageRecord:
    """What one stage took.

    Attributes:
        seconds: wall-clock time; 0 for a stage that was there already.
        peak_bytes: largest resident memory of the stage's process.
        input_bytes: of the model, for the speed; 0 for unknown.
    """

    stage: str
    output: str
    cached: bool
    seconds: float = 0.0
    peak_bytes: int = 0
    input_bytes: int = 0

    def as_json(self) -> dict[str, object]:
        speed = self.input_bytes / self.seconds if self.seconds and self.input_bytes else None
        return {
            "stage": self.stage,
            "output": self.output,
            "cached": self.cached,
            "seconds": round(self.seconds, 3),
            "peakBytes": self.peak_bytes or None,
            "bytesPerSecond": None if speed is None else round(speed),
        }


class RunLog:
    """One line of JSON a stage, beside the artefacts and never inside one: the speed of this machine."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def append(self, record: StageRecord) -> None:
        """Add a stage that ran."""
        with self.file.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"version": enginix.__version__, **record.as_json()}) + "\n")

    def estimate_seconds(self, stage: Stage) -> float | None:
        """Return what a stage will take by its last speed here; None before its first run."""
        if not stage.input_bytes or not self.file.exists():
            return None
        speed = None
        for line in self.file.read_text("utf-8").splitlines():
            with contextlib.suppress(ValueError, AttributeError, TypeError):
                row = json.loads(line)
                if row.get("stage") == stage.name and row.get("bytesPerSecond"):
                    speed = float(row["bytesPerSecond"])
        return None if not speed else stage.input_bytes / speed


def run_stages(
    stages: Sequence[Stage], log: RunLog, *, as_json: bool, quiet: bool = False
) -> list[StageRecord]:
    """Run each stage whose directory is not there; stages show their own progress.

    Raises:
        StageFailed: a stage ended with an error; what it had finished is kept.
    """
    records = []
    for number, stage in enumerate(stages, 1):
        label = f"[{number}/{len(stages)}] {stage.name}"
        record = None
        while record is None and not stage.output.exists():
            if is_being_written(stage.output):
                _await_other_run(stage.output, label)
                continue
            expected = log.estimate_seconds(stage)
            about = "" if expected is None else f", about {expected:.0f} s by its last speed here"
            console.print_message(f"{label}{about}")
            try:
                record = _run_stage(stage, as_json=as_json, quiet=quiet)
            except StageFailed as e:
                # Another run began it at the same moment. Asked in this order, as it may end in between.
                is_made = is_being_written(stage.output) or stage.output.exists()
                if e.exit_code != EXIT_USAGE or not is_made:
                    raise
        if record is None:
            console.print_message(f"{label}: here already")
            records.append(StageRecord(stage.name, str(stage.output), cached=True))
            continue
        log.append(record)
        console.print_message(
            f"{label}: {record.seconds:.1f} s, at most {format_bytes(record.peak_bytes)} of memory"
        )
        records.append(record)
    return records


def _await_other_run(output: Path, label: str) -> None:
    console.print_message(f"{label}: another enginix makes it; waiting for it")
    begun, heartbeat = time.monotonic(), console.Heartbeat(TICK)
    while is_being_written(output):
        heartbeat.beat(f"{label}: waiting for another enginix since {time.monotonic() - begun:.0f} s")
        time.sleep(0.5)


def _run_stage(stage: Stage, *, as_json: bool, quiet: bool) -> StageRecord:
    begun = time.monotonic()
    words = [*stage.words, "--quiet"] if quiet else stage.words
    # Its result is a line of ours; what it says of its progress stays on standard error.
    stdout = subprocess.DEVNULL if as_json or quiet else sys.stderr
    process = _start_command(words, stdout=stdout, stderr=None)
    try:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    except BaseException as e:
        signal_group(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        signal_group(process.pid)
        if isinstance(e, KeyboardInterrupt) and not isinstance(e, SignalReceived):
            raise InterruptedWork(
                f"interrupted in stage {stage.name}",
                fix="to go on, run the same command again: finished stages are kept",
            ) from e
        raise
    if process.returncode != 0:
        raise StageFailed(stage.name, process.returncode)
    return StageRecord(
        stage.name,
        str(stage.output),
        cached=False,
        seconds=time.monotonic() - begun,
        peak_bytes=usage.ru_maxrss * 1024,
        input_bytes=stage.input_bytes,
    )


# Stages whose libraries another environment may have, as in the flake's packages.
QUANTIZING = ("calibrate", "quantize")


def _start_command(
    words: Sequence[str], *, stdout: int | IO[Any], stderr: int | None
) -> subprocess.Popen[bytes]:
    """Start another command of this enginix, in a group of processes that ends with this one.

    It runs in ``/``: Python puts the working directory first on its module path.
    """
    other = os.environ.get("ENGINIX_QUANTIZE_PYTHON") if words[0] in QUANTIZING else None
    return subprocess.Popen(
        [other or sys.executable, "-m", "enginix", *words],
        env={**os.environ, "PYTHONPATH": str(Path(enginix.__file__).parents[1]), "ENGINIX_STAGE": words[0]},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=end_with_parent(signal.SIGTERM),
    )


@dataclass(frozen=True)
class RunningServer:
    """A server in the background; what it prints is in ``log``."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check_running(self) -> None:
        """Raise ``MachineError`` with its last lines where it has ended."""
        if self.process.poll() is not None:
            raise self.explain(f"ended with status {self.process.returncode}")

    def is_listening(self, url: str) -> bool:
        """Tell whether it, or a process below it, listens on the port of an address."""
        port = urlsplit(url).port
        return port is not None and is_port_of({self.process.pid, *list_descendants(self.process.pid)}, port)

    def explain(self, what: str, advice: str = "") -> MachineError:
        """Return an error with the server's last lines."""
        lines = "\n    ".join(self.log.read_text("utf-8", "replace").splitlines()[-12:])
        return MachineError(what, where=self.name, fix=f"{advice}its last lines:\n    {lines}")


@contextlib.contextmanager
def run_server(name: str, words: Sequence[str], log: Path) -> Iterator[RunningServer]:
    """Run a server until the block ends; a group of processes, all of which end with it."""
    with log.open("wb") as out:
        process = _start_command(words, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield RunningServer(name, process, log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                console.print_message(f"{name} does not end; killed")
        signal_group(process.pid)
        process.wait()


def await_url(url: str, servers: Sequence[RunningServer], timeout: float) -> None:
    """Wait until the last server answers with status 200 at its address, where another may answer, too.

    Raises:
        MachineError: one of the servers ended, or none answered in time; with its last lines.
    """
    begun = time.monotonic()
    heartbeat = console.Heartbeat(TICK)
    while not (servers[-1].is_listening(url) and _answers(url)):
        for server in servers:
            server.check_running()
        waited = time.monotonic() - begun
        if waited > timeout:
            raise servers[-1].explain(
                f"no answer within {timeout:.0f} s", "raise --start-timeout where it is still loading; "
            )
        heartbeat.beat(f"{' and '.join(s.name for s in servers)}: starting since {waited:.0f} s")
        time.sleep(0.1)


def wait_for_end(servers: Sequence[RunningServer]) -> int:
    """Wait until the user ends it; returns 0 then.

    Raises:
        MachineError: a server ended by itself; with its last lines.
    """
    try:
        while True:
            for server in servers:
                server.check_running()
            time.sleep(0.5)
    except KeyboardInterrupt:
        console.print_message("stopping")
        return EXIT_OK


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False
