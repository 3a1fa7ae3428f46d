"""Progress of commands: no silence on a terminal, calm logs, nothing with --quiet, and what steps took."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from enginix import console, progress
from enginix.cli import command_table, main
from enginix.run_log import find_run_log, read_run_log
from retries import hold_once

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "tests" / "models" / "tiny-qwen3"
# A stand-in for a slow stage: says nothing for a while, then counts, then prints as a library does.
SLOW = """
import sys, time, types
from enginix import cli, console
from enginix.cli import command_table
from enginix.progress import track_step
def run(args):
    time.sleep(2.2)
    with track_step("counting", 20, "prompts") as step:
        for _ in range(20):
            time.sleep(0.1)
            step.advance()
    with console.fold_output("library"):
        print("a foreign line"); print("a foreign warning", file=sys.stderr)
        time.sleep(1.2)
    console.print_message("a message")
    console.print_result({}, "the result")
    return 0
stand_in = types.ModuleType("slow"); stand_in.run = run; stand_in.add_arguments = lambda parser: None
sys.modules["enginix.cli.slow"] = stand_in
command_table.COMMANDS["slow"] = ("slow", "a slow stand-in")
sys.exit(cli.main(["slow", *sys.argv[1:]]))
"""


def run_on_terminal(*words: str) -> tuple[str, float]:
    """Return what the stand-in writes to a terminal of 80 columns, and its longest silence once it spoke."""
    main_end, terminal = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python"), "TERM": "xterm", "COLUMNS": "80"}
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW, *words], stdout=terminal, stderr=terminal, env=environment
    )
    os.close(terminal)
    output, last, longest = b"", time.monotonic(), 0.0
    while True:
        ready, _, _ = select.select([main_end], [], [], 0.1)
        try:
            data = os.read(main_end, 4096) if ready else b""
        except OSError:
            break
        now = time.monotonic()
        if data:
            # The interpreter's start says nothing about progress.
            longest = max(longest, now - last) if output else 0.0
            output, last = output + data, now
    assert child.wait() == 0
    os.close(main_end)
    return output.decode(), longest


def test_no_silence_on_a_terminal_and_the_line_goes_away() -> None:
    outputs: list[str] = []

    def check() -> None:
        output, longest = run_on_terminal()
        outputs.append(output)
        assert longest < 2
        assert re.search(r"slow: \d s", output)
        assert re.search(r"slow: counting: 1\d of 20 prompts \(\d\d%\), \d s left", output)

    hold_once(check)
    output = outputs[-1]
    assert "foreign" not in output
    # What stays: the last drawing of each line is empty before the next line is printed.
    shown = [line.rsplit("\r\x1b[K", 1)[-1] for line in output.replace("\r\n", "\n").split("\n")]
    assert shown == ["a message", "the result", ""]


WAITING = """
import time
from enginix import console
heartbeat = console.Heartbeat(600)
for second in range(3):
    heartbeat.beat(f"server: starting since {second} s")
with console.show_waiting("waiting for the servers"):
    time.sleep(1.3)
console.print_message("ready")
"""


def test_a_wait_is_drawn_again_on_a_terminal_and_seldom_told_in_a_log() -> None:
    main_end, terminal = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python"), "TERM": "xterm"}
    words = [sys.executable, "-c", WAITING]
    subprocess.run(words, stdout=terminal, stderr=terminal, env=environment, check=True)
    os.close(terminal)
    shown = os.read(main_end, 65536).decode()
    os.close(main_end)
    assert all(f"\r\x1b[Kserver: starting since {second} s" in shown for second in range(3))
    assert "\r\x1b[Kwaiting for the servers: 1 s" in shown and shown.endswith("\r\x1b[Kready\r\n")
    done = subprocess.run(words, capture_output=True, env=environment, check=True, text=True)
    # show_waiting is for terminals alone; a log has the heartbeat's lines.
    assert "server:" not in done.stderr and done.stderr.endswith("ready\n")


def test_the_log_of_a_nix_build_is_calm_though_it_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nix shows and keeps whole lines: a drawn one would only be in `nix log`, with its escapes."""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    for is_build in (False, True):
        if is_build:
            monkeypatch.setenv("NIX_LOG_FD", "2")
        assert progress.CommandProgress("a").is_terminal != is_build
        assert console.is_watched() != is_build
        terminal.truncate(0)
        console.print_message("note: a")
        assert ("\x1b[36m" in terminal.getvalue()) != is_build


def test_a_log_is_calm_and_quiet_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
    words = [sys.executable, "-c", SLOW.replace("time.sleep", "(lambda s: None)")]
    log = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert (log.stdout, log.stderr) == ("the result\n", "a message\n")
    quiet = subprocess.run([*words, "--quiet"], env=environment, capture_output=True, text=True, check=True)
    assert (quiet.stdout, quiet.stderr) == ("the result\n", "")


@pytest.mark.parametrize("name", sorted(set(command_table.COMMANDS) - set(command_table.OWN_TERMINAL)))
def test_every_command_shows_progress(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in stands for any of them: all go through the same function."""
    import importlib

    seen = []
    module = importlib.import_module(f"enginix.cli.{command_table.COMMANDS[name][0]}")
    monkeypatch.setattr(module, "run", lambda args: seen.append(progress._command) or 0)
    monkeypatch.setattr(module, "add_arguments", lambda parser: None)
    assert main([name]) == 0 and seen[0].name == name and seen[0].is_live


def test_the_text_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    step = progress.ProgressStep("writing", 4 << 20, progress.BYTES)
    step.resume(1 << 20)
    assert step.describe() == "1.0 MiB of 4.0 MiB (25%), 0 B/s, 0 s"
    clock[0] += 10
    step.advance(1 << 20)
    # What an earlier run did says nothing about the speed.
    assert step.describe() == "2.0 MiB of 4.0 MiB (50%), 102.4 KiB/s, 20 s left"
    step.advance_to(4 << 20)
    assert step.describe().endswith("(100%), 307.2 KiB/s, 10 s")
    assert [console.format_duration(s) for s in (0, 59.4, 222, 3900)] == [
        "0 s", "59 s", "3 min 42 s", "1 h 5 min",
    ]  # fmt: skip


def test_a_long_line_leaves_names_out_before_figures() -> None:
    command = progress.CommandProgress("fetch")
    for name in ("outer", "owner/" + "n" * 50):
        command.open_step(progress.ProgressStep(name, 19 << 30, progress.BYTES))
    assert command.describe() == "fetch: 0 B of 19.0 GiB (0%), 0 B/s, 0 s"
    command.open_step(progress.ProgressStep("inner", 3, "texts"))
    assert command.describe() == "fetch: outer, inner: 0 of 3 texts (0%), 0 s"


def test_a_library_that_fails_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), console.fold_output("library"):
        print("why it fails")
        raise ZeroDivisionError
    assert capfd.readouterr().err == "library: why it fails\n"


def test_what_an_artefact_took_is_beside_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    outputs = [tmp_path / "a", tmp_path / "b"]
    for out in outputs:
        assert main(["convert", str(MODEL), "-o", str(out), "--json"]) == 0
    printed = json.loads(capfd.readouterr().out.splitlines()[-1])["statistics"]
    assert printed["seconds"] > 0 and printed["peakBytes"] > 1 << 20
    [writing] = [row for row in printed["steps"] if row["step"] == "writing"]
    weights = (outputs[1] / "rank0.safetensors").stat().st_size
    assert writing["bytes"] == weights and writing["bytesPerSecond"] > 0
    # The artefact itself is pure.
    files = [{p.name: p.read_bytes() for p in out.iterdir()} for out in outputs]
    assert files[0] == files[1] and "statistics" not in files[0]["enginix.json"].decode()
    log = read_run_log(outputs[1])
    assert log is not None and log.command == "convert" and log.steps[-1]["step"] == "writing"
    # Of another artefact, damaged, or none: no log, and no error.
    find_run_log(outputs[0]).write_text(
        find_run_log(outputs[1]).read_text().replace('"manifest": "', '"manifest": "0')
    )
    assert read_run_log(outputs[0]) is None
    for text in ("[]", "{", '{"format": 1}'):
        find_run_log(outputs[1]).write_text(text)
        assert read_run_log(outputs[1]) is None
    assert read_run_log(tmp_path) is None


def test_peak_memory_belongs_to_the_step() -> None:
    # In a process of its own: this one's peak may be far above what a step here takes.
    code = """
import json
from enginix import progress
with progress.report_command("x") as command:
    with progress.track_step("large"):
        block = bytearray(200 << 20)
        del block
    with progress.track_step("small"):
        pass
print(json.dumps(command.as_json()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT / "python")
    peaks = {row["step"]: row["peakBytes"] for row in json.loads(done.stdout)["steps"]}
    assert peaks["large"] - peaks["small"] > 100 << 20
