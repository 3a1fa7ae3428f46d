"""The one rule for outputs: whole or absent, one process at a time, and nothing touched beside them."""

from __future__ import annotations

import os
import pty
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enginix import files
from enginix.cli import main
from enginix.errors import EnginixError, MachineError, UsageError
from enginix.files import write_text
from enginix.kinds.edgellm import serve
from enginix.process_group import read_start_time
from enginix.work_directory import new_directory

PACKAGE = Path(files.__file__).parents[1]
MODEL = Path(__file__).resolve().parents[2] / "models" / "tiny-qwen3"


def precious(directory: Path) -> Path:
    """Somebody's directory, which no run may change."""
    (directory / "sub").mkdir(parents=True)
    (directory / "thesis.txt").write_text("years of work")
    (directory / "sub" / "figures.txt").write_text("more of it")
    directory.chmod(0o700)
    return directory


def state(directory: Path) -> dict[str, tuple[int, bytes | str]]:
    """Every name below a directory with its mode and content; links are not followed."""
    found: dict[str, tuple[int, bytes | str]] = {".": (directory.lstat().st_mode, "")}
    for path in sorted(directory.rglob("*")):
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[path.relative_to(directory).as_posix()] = (path.lstat().st_mode, content)
    return found


def fill(out: Path) -> None:
    with new_directory(out) as partial:
        (partial / "config.json").write_text("{}")


def run_fill(out: Path, *, wait: str) -> subprocess.Popen[str]:
    """Another process that fills ``out`` and waits midway for its standard input to end."""
    code = (
        "import sys, pathlib; from enginix.work_directory import new_directory\n"
        f"with new_directory(pathlib.Path({str(out)!r})) as d:\n"
        f"    (d / 'half').write_text('x'); print({wait!r}, flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline().strip() == wait
    return process


def test_an_empty_directory_is_filled_and_nothing_is_left_beside(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755
    with pytest.raises(UsageError, match="exists already"):
        fill(tmp_path / "out")


@pytest.mark.parametrize("leads", ["an empty directory", "a full one", "nowhere", "a file"])
def test_an_output_that_is_a_link_is_refused(tmp_path: Path, leads: str) -> None:
    real, out = tmp_path / "real", tmp_path / "out"
    if leads == "an empty directory":
        real.mkdir()
    elif leads == "a full one":
        precious(real)
    elif leads == "a file":
        real.write_text("mine")
    out.symlink_to("real")
    before = state(tmp_path)
    with pytest.raises(UsageError, match="a symbolic link to real"):
        fill(out)
    assert state(tmp_path) == before


COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "convert": lambda work: ["convert", str(MODEL)],
    "quantize": lambda work: ["quantize", str(MODEL), "--format", "int8_wo"],
    "calibrate": lambda work: ["calibrate", str(MODEL)],
    "build": lambda work: ["build", str(work), "--kind", "reference", "--model", str(MODEL)],
    "triton-repo": lambda work: ["triton-repo", str(work)],
    "reference": lambda work: ["reference", str(MODEL)],
    "edgellm-export": lambda work: ["edgellm-export", str(MODEL)],
    "gate": lambda work: ["gate", str(work), "--reference", str(MODEL)],
    "fetch": lambda work: ["fetch", str(MODEL.with_suffix(".lock.json"))],
    "fetch-tree": lambda work: ["fetch-tree", "acme/tiny", "0" * 40],
    "fetch-file": lambda work: [
        *("fetch-file", "acme/tiny", "0" * 40, "a.json", "--sha256", "0" * 64, "--size", "1")
    ],
    "lock": lambda work: ["lock", "acme/tiny"],
    "compare": lambda work: ["compare", str(work), str(work)],
    "edgellm-build": lambda work: ["edgellm-build", str(work), "--model", str(work), "--target", "none"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_link_before_it_works(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with inputs that would be refused later, or a hub that does not answer."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    before = state(tmp_path)
    assert main([*COMMANDS[command](tmp_path / "none"), "-o", str(tmp_path / "out")]) == 2
    assert "output is a symbolic link to real" in capsys.readouterr().err
    assert state(tmp_path) == before


READERS = [name for name, words in COMMANDS.items() if {"none", str(MODEL)} & {*words(Path("none"))}]


@pytest.mark.parametrize("command", READERS)
def test_an_output_inside_what_is_read_is_refused_at_once(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    read = precious(tmp_path / "read")
    (tmp_path / "link").symlink_to("read/sub")
    words = [str(read) if word == str(MODEL) else word for word in COMMANDS[command](read)]
    before = state(tmp_path)
    for out in ("read/out", "read/sub/out", "read/missing/out", "link/out"):
        assert main([*words, "-o", str(tmp_path / out)]) == 2, out
        assert f"output lies inside {read}, which is read" in capsys.readouterr().err
    assert state(tmp_path) == before


# Whoever runs the tests may ignore a signal, as nohup does, and a program that it starts would, too.
SLOW_COMMAND = """
import pathlib, signal, sys, types
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)
from enginix import cli, process
from enginix.cli import command_table
from enginix.work_directory import new_directory
slow = types.ModuleType("enginix.cli.slow")
slow.add_arguments = lambda parser: parser.add_argument("-o", "--output", type=pathlib.Path)
def run(args):
    with new_directory(args.output) as partial:
        (partial / "half").write_text("x")
        beside = ["bash", "-c", "sleep 61 & echo $$ $! >$0; wait", args.output.with_name("beside")]
        orphaning = "(sleep 62 & echo $! >$0); (exec setsid sleep 63) & echo $$ $! >>$0; echo; wait"
        with process.start_program(beside):
            process.run_program(["bash", "-c", orphaning, args.output.with_name("pids")])
slow.run = run
sys.modules[slow.__name__] = slow
command_table.COMMANDS["slow"] = ("slow", "waits")
sys.exit(cli.main(["slow", "-o", sys.argv[1]]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_command_with_all_that_it_started(tmp_path: Path, number: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    words = [sys.executable, "-c", SLOW_COMMAND, tmp_path / "out"]
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    notes, pids = [tmp_path / "beside", tmp_path / "pids"], []
    deadline = time.monotonic() + 300
    while len(pids) < 5 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
        pids = [int(pid) for note in notes if note.exists() for pid in note.read_text().split()]
    assert len(pids) == 5 and list(tmp_path.glob(".out.*")), process.poll()
    process.send_signal(number)
    text = process.communicate(timeout=300)[1]
    assert process.returncode == 128 + number, text
    assert text == ("error: interrupted\n" if number == signal.SIGINT else f"error: ended by {number.name}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside", "pids"]
    deadline = time.monotonic() + 300
    while (left := [pid for pid in pids if read_start_time(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left


def test_a_terminal_that_is_closed_ends_a_command(tmp_path: Path) -> None:
    """The kernel sends SIGHUP, and nothing can be written to the terminal any more."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ["PYTHONPATH"] = str(PACKAGE)
        os.execv(sys.executable, [sys.executable, "-c", SLOW_COMMAND, str(tmp_path / "out")])
    deadline = time.monotonic() + 300
    while not (tmp_path / "pids").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 129
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("name", [".out.partial", ".out.partial/lock", ".out.partial/tree"])
def test_links_where_unfinished_output_goes_are_not_followed(tmp_path: Path, name: str) -> None:
    mine = precious(tmp_path / "precious")
    before = state(mine)
    link = tmp_path / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(mine / "thesis.txt" if name.endswith("lock") else mine)
    if name == ".out.partial/tree":
        fill(tmp_path / "out")
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["config.json"]
    else:
        with pytest.raises(UsageError, match="move it away"):
            fill(tmp_path / "out")
        assert not (tmp_path / "out").exists()
    assert state(mine) == before


@pytest.mark.parametrize("strange", ["a stranger's file", "writable by others", "a file", "a fifo for lock"])
def test_what_is_not_of_an_earlier_run_is_left_alone(tmp_path: Path, strange: str) -> None:
    held = tmp_path / ".out.partial"
    if strange == "a file":
        held.write_text("mine")
    else:
        held.mkdir(mode=0o700)
    if strange == "a stranger's file":
        (held / "thesis.txt").write_text("years of work")
    elif strange == "writable by others":
        held.chmod(0o770)
    elif strange == "a fifo for lock":
        os.mkfifo(held / "lock")
    before = state(tmp_path)
    with pytest.raises(UsageError, match="move it away"):
        fill(tmp_path / "out")
    assert state(tmp_path) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
def test_another_users_leftover_is_in_nobodys_way(tmp_path: Path) -> None:
    """As in a Nix store, where the next build of a killed one has another user."""
    left = tmp_path / ".out.partial"
    left.mkdir(mode=0o700)
    os.chown(left, 12345, 12345)
    fill(tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"out", ".out.partial"} and left.stat().st_uid == 12345


def test_two_at_once(tmp_path: Path) -> None:
    """The second says so before it works; the first is whole."""
    out = tmp_path / "out"
    first = run_fill(out, wait="filling")
    with pytest.raises(UsageError, match="another enginix is writing to the same place"):
        fill(out)
    _, said = first.communicate("", timeout=300)
    assert first.returncode == 0, said
    assert [p.name for p in out.iterdir()] == ["half"] and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_run_left_is_removed_by_the_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    killed = run_fill(out, wait="filling")
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=300)
    (left,) = tmp_path.glob(".out.*.partial")
    # Of another output, whose name makes it look like ours.
    other = tmp_path / ".out.awq_int4.partial"
    other.mkdir()
    fill(out)
    assert f"removing {left.name}" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"out", other.name}


def test_a_note_of_a_killed_run_does_not_lead_elsewhere(tmp_path: Path) -> None:
    """The record names a directory by its name and inode; one that somebody put there is not removed."""
    mine = precious(tmp_path / ".out.precious.partial")
    before = state(mine)
    held = tmp_path / ".out.partial"
    held.mkdir(mode=0o700)
    for name in (".out.precious.partial", "../precious", "/etc", "precious"):
        (held / "lock").write_text(f'{{"work": "{name}", "inode": 1}}')
        fill(tmp_path / "out")
        (tmp_path / "out" / "config.json").unlink()
        (tmp_path / "out").rmdir()
        held.mkdir(mode=0o700)
    assert state(mine) == before


def test_a_directory_exchanged_midway_is_not_published(tmp_path: Path) -> None:
    mine = precious(tmp_path / "precious")
    before = state(mine)
    with pytest.raises(EnginixError, match="replaced by another"), new_directory(tmp_path / "out") as partial:
        partial.rename(tmp_path / "away")
        partial.symlink_to(mine)
    assert state(mine) == before and not (tmp_path / "out").exists()


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """An empty directory of the same file system, mounted."""
    source, where = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    where.mkdir()
    if subprocess.run(["mount", "--bind", source, where], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield where
    subprocess.run(["umount", where], check=True)


def test_a_mount_point_is_refused_before_the_work(mounted: Path) -> None:
    with pytest.raises(UsageError, match="a mount point") as e:
        fill(mounted)
    assert f"-o {mounted}/" in str(e.value)
    fill(mounted / "below")
    assert (mounted / "below" / "config.json").is_file()


def test_a_file_is_written_under_a_fresh_name(tmp_path: Path) -> None:
    """A link under the name that a process of this id would take leads nowhere."""
    mine = tmp_path / "thesis.txt"
    mine.write_text("years of work")
    (tmp_path / f".page.html.{os.getpid()}.partial").symlink_to(mine)
    write_text(tmp_path / "page.html", "<p>")
    assert mine.read_text() == "years of work" and (tmp_path / "page.html").read_text() == "<p>"
    umask = os.umask(0o022)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "page.html").stat().st_mode) == 0o666 & ~umask


def test_the_servers_cache_does_not_lead_elsewhere(tmp_path: Path) -> None:
    """enginix edgellm-serve clears the place of its engine in a cache that it finds."""
    mine = precious(tmp_path / "precious")
    before = state(mine)
    (tmp_path / "engine").mkdir()
    cache = tmp_path / "state" / "cache"
    cache.mkdir(parents=True)
    (cache / "engines").symlink_to(mine)
    with pytest.raises(MachineError, match="outside its cache"):
        serve._link_engine(tmp_path / "engine", cache / "engines" / "sub", cache)
    assert state(mine) == before
