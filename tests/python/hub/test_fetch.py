"""enginix fetch: resumed after any death, refused where there is no room, quiet in a log."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hub_support import REPO, content, listing

from enginix import manifest
from enginix.cli import main
from enginix.errors import MachineError, UsageError
from enginix.hub.fetch import fetch_file, fetch_locked_files
from enginix.hub.lock import Lock, Selection
from enginix.hub.locking import make_lock
from enginix.hub.transfer import FileDigest
from enginix.progress import BYTES, report_command, track_step
from hub import Fault, Hub

Start = Callable[..., Hub]
PYTHON = Path(__file__).resolve().parents[3] / "python"


QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def arrived(beside: Path) -> int:
    """Bytes that are on the disk so far, finished or not."""
    total = 0
    for folder, _, names in os.walk(beside):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return total


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "enginix", *map(str, words)]


def environment(**more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(PYTHON), **more}


def written(start: Start, model: Path, tmp_path: Path, *faults: str) -> tuple[Hub, Lock, Path]:
    hub = start(model)
    lock = make_lock(REPO, Selection()).lock
    path = tmp_path / "tiny.lock.json"
    path.write_text(lock.dump())
    hub.requests.clear()
    hub.faults[:] = [Fault.parse(f) for f in faults]
    return hub, lock, path


def test_what_arrives_is_what_is_pinned_and_again_moves_nothing(
    start: Start, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub, lock, path = written(start, model, tmp_path)
    out = tmp_path / "deep" / "out"
    assert main(["fetch", str(path), "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["moved"] == lock.size
    assert {n: d for n, d in listing(out).items() if n != "enginix.json"} == {
        f.path: (model / f.path).read_bytes() for f in lock.files
    }
    note = manifest.read_manifest(out, "model")
    assert note.inputs["revision"] == lock.revision and note.model["architecture"] == "Qwen3ForCausalLM"
    hub.requests.clear()
    assert main(["fetch", str(path), "-o", str(out)]) == 0
    assert not hub.requests


def test_an_output_that_is_something_else_is_left_alone(start: Start, model: Path, tmp_path: Path) -> None:
    hub, lock, path = written(start, model, tmp_path)
    out = tmp_path / "out"
    fetch_locked_files(lock, out)
    hub.requests.clear()
    (out / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"config\.json in it differs from the pinned file"):
        fetch_locked_files(lock, out)
    shutil.copyfile(model / "config.json", out / "config.json")
    (out / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match=r"mine\.txt in it is not pinned"):
        fetch_locked_files(lock, out)
    assert (out / "mine.txt").read_text() == "precious" and not hub.requests
    with pytest.raises(UsageError, match="not a directory"):
        fetch_locked_files(lock, path)


@pytest.mark.parametrize("was", ["another commit", "nothing", "garbage"])
def test_the_manifest_is_of_the_lock_that_was_fetched(
    start: Start, model: Path, tmp_path: Path, was: str
) -> None:
    """A commit that changed no pinned file: nothing moves, and the manifest names the new commit."""
    hub, lock, _ = written(start, model, tmp_path)
    out = tmp_path / "out"
    fetch_locked_files(lock, out)
    note = manifest.read_manifest(out)
    if was == "another commit":
        replace(note, inputs={**note.inputs, "revision": "0" * 40}).write(out)
    elif was == "nothing":
        (out / "enginix.json").unlink()
    else:
        (out / "enginix.json").write_text("{")
    hub.requests.clear()
    assert fetch_locked_files(lock, out).moved == 0 and not hub.requests
    assert manifest.read_manifest(out) == note


@pytest.fixture
def slow_hub(start: Start, model: Path, tmp_path: Path) -> Iterator[tuple[Hub, Lock, Path]]:
    """Each body pauses midway, so that a kill finds transfers under way."""
    hub, lock, path = written(start, model, tmp_path)
    hub.faults.append(Fault("stall", path="*-of-*", at=400_000, seconds=0.2, on="blob"))
    yield hub, lock, path


@pytest.mark.fuzz
def test_killed_at_random_moments_it_goes_on_and_ends_the_same(
    slow_hub: tuple[Hub, Lock, Path], model: Path, tmp_path: Path, chance: random.Random
) -> None:
    hub, lock, path = slow_hub
    out = tmp_path / "out"
    env = environment(HF_ENDPOINT=hub.endpoint, HOME="/homeless-shelter")
    beside, kills = tmp_path / ".out.partial", 0
    moments, fewest = (8, 3) if os.environ.keys() & {"ENGINIX_SLOW", "ENGINIX_FUZZ"} else (2, 1)
    for _ in range(moments):
        enough = chance.randrange(1, lock.size)
        process = subprocess.Popen(command("fetch", path, "-o", out), env=env, **QUIET)
        while process.poll() is None and arrived(beside) < enough:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if out.exists():  # it was faster than the kill
            shutil.rmtree(out)
            continue
        kills += 1
        finished = {
            p.relative_to(beside / "tree").as_posix() for p in (beside / "tree").rglob("*") if p.is_file()
        }
        hub.requests.clear()
        done = subprocess.run(
            command("fetch", path, "-o", out), env=env, timeout=600, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        again = {
            r["path"].partition(f"{lock.revision}/")[2] for r in hub.requests if r["path"].startswith("/acme")
        }
        assert not again & finished, "a finished file was fetched again"
        assert {n: d for n, d in listing(out).items() if n != "enginix.json"} == {
            f.path: (model / f.path).read_bytes() for f in lock.files
        }
        assert not beside.exists()
        shutil.rmtree(out)
    assert kills >= fewest, "the process was too fast to be killed midway"


def test_half_a_file_is_not_asked_for_twice(start: Start, model: Path, tmp_path: Path) -> None:
    hub, lock, _ = written(start, model, tmp_path)
    big = max(lock.files, key=lambda f: f.size)
    parts = tmp_path / ".out.partial" / "part"
    parts.mkdir(parents=True)
    (parts / big.sha256).write_bytes((model / big.path).read_bytes()[:2_000_000])
    fetch_locked_files(lock, tmp_path / "out")
    ranges = [r["range"] for r in hub.requests if big.sha256 in r["path"] and r["method"] == "GET"]
    assert ranges == ["bytes=2000000-"]


def test_a_damaged_half_is_thrown_away(start: Start, model: Path, tmp_path: Path) -> None:
    _, lock, _ = written(start, model, tmp_path)
    first, second = sorted((f for f in lock.files if "safetensors" in f.path), key=lambda f: f.path)
    beside = tmp_path / ".out.partial"
    (beside / "part").mkdir(parents=True)
    (beside / "tree").mkdir()
    (beside / "part" / first.sha256).write_bytes(content(99, 1_000_000))
    (beside / "part" / second.sha256).write_bytes(content(99, second.size + 5))
    (beside / "tree" / "config.json").write_text("{")
    (beside / "tree" / "stranger.json").write_text("{}")
    fetch_locked_files(lock, tmp_path / "out")
    assert {n for n in listing(tmp_path / "out")} == {f.path for f in lock.files} | {"enginix.json"}
    for f in lock.files:
        assert (tmp_path / "out" / f.path).read_bytes() == (model / f.path).read_bytes()


def test_two_at_once_do_not_mix(slow_hub: tuple[Hub, Lock, Path], tmp_path: Path) -> None:
    hub, _, path = slow_hub
    out = tmp_path / "out"
    env = environment(HF_ENDPOINT=hub.endpoint)
    first = subprocess.Popen(command("fetch", path, "-o", out), env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (tmp_path / ".out.partial" / "lock").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    second = subprocess.run(command("fetch", path, "-o", out), env=env, capture_output=True, text=True)
    assert first.wait(300) == 0
    assert second.returncode == 0 or "another enginix is fetching" in second.stderr


def test_interrupted_it_says_how_to_go_on(slow_hub: tuple[Hub, Lock, Path], tmp_path: Path) -> None:
    hub, _, path = slow_hub
    for fault in hub.faults:
        fault.seconds = 1
    env = environment(HF_ENDPOINT=hub.endpoint)
    process = subprocess.Popen(
        command("fetch", path, "-o", tmp_path / "out"), env=env, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not any(
        f.stat().st_size for f in (tmp_path / ".out.partial" / "part").glob("*")
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130 and "run the same command again" in said and "Traceback" not in said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    where = tmp_path / "small"
    where.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", where], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting needs root")
    yield where
    subprocess.run(["umount", where], check=True)


def test_no_room_is_said_before_the_download(
    start: Start, model: Path, tmp_path: Path, small_disk: Path
) -> None:
    hub, lock, _ = written(start, model, tmp_path)
    with pytest.raises(MachineError, match=r"5\.7 MiB are needed, 4\.0 MiB are free") as e:
        fetch_locked_files(lock, small_disk / "out")
    assert "free " in str(e.value) and not hub.requests and not list(small_disk.iterdir())
    big = max(lock.files, key=lambda f: f.size)
    (small_disk / "full").write_bytes(bytes(2_000_000))
    with pytest.raises(MachineError, match="are needed"):
        fetch_file(
            REPO, lock.revision, FileDigest(big.path, big.size, "sha256", big.sha256), small_disk / "out"
        )
    assert not hub.requests and [p.name for p in small_disk.iterdir()] == ["full"]


def test_a_disk_that_fills_up_on_the_way(
    start: Start, model: Path, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, lock, _ = written(start, model, tmp_path)
    # Room enough when it was asked for; another process takes it afterwards.
    monkeypatch.setattr("enginix.hub.fetch.require_free_space", lambda *_: None)
    with pytest.raises(MachineError, match="the disk is full"):
        fetch_locked_files(lock, small_disk / "out")
    assert not (small_disk / "out").exists()
    big = max(lock.files, key=lambda f: f.size)
    shutil.rmtree(small_disk / ".out.partial", ignore_errors=True)
    (small_disk / "full").write_bytes(bytes(2_000_000))
    with pytest.raises(MachineError, match="the disk is full"):
        fetch_file(
            REPO, lock.revision, FileDigest(big.path, big.size, "sha256", big.sha256), small_disk / "out"
        )
    assert [p.name for p in small_disk.iterdir()] == ["full"]


def test_a_place_that_cannot_be_written(start: Start, model: Path, tmp_path: Path) -> None:
    _, lock, path = written(start, model, tmp_path)
    with pytest.raises(MachineError, match="cannot write"):
        fetch_locked_files(lock, path / "below-a-file")
    # It says that what is to be made does not exist, however often it is asked.
    with pytest.raises(MachineError, match="cannot write"):
        fetch_locked_files(lock, Path("/proc/out"))


def test_one_file_without_a_home_as_a_build_does(start: Start, model: Path, tmp_path: Path) -> None:
    hub, lock, _ = written(start, model, tmp_path)
    big = max(lock.files, key=lambda f: f.size)
    words = command(
        "fetch-file", REPO, lock.revision, big.path, "--sha256", big.sha256, "--size", str(big.size)
    )
    env = environment(HF_ENDPOINT=hub.endpoint, HOME="/homeless-shelter", TMPDIR="/nonexistent")
    done = subprocess.run([*words, "-o", tmp_path / "x"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x").read_bytes() == (model / big.path).read_bytes()
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644
    assert not Path("/homeless-shelter").exists() and not list(tmp_path.glob(".x*"))


def test_no_pickle_is_fetched_as_one_file(
    start: Start, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What evaluation of a lock made by hand lets through ends where its bytes would be fetched."""
    hub, lock, _ = written(start, model, tmp_path)
    data = (model / "training_args.bin").read_bytes()
    words = [
        "--sha256",
        hashlib.sha256(data).hexdigest(),
        "--size",
        str(len(data)),
        "-o",
        str(tmp_path / "x"),
    ]
    assert main(["fetch-file", REPO, lock.revision, "training_args.bin", *words]) == 2
    assert "a pickle format" in capsys.readouterr().err and not hub.requests


def test_a_log_gets_a_line_now_and_then_even_when_nothing_moves(capsys: pytest.CaptureFixture[str]) -> None:
    with report_command("fetch", interval=0.05), track_step("a/b", 2048, BYTES) as progress:
        progress.resume(1024)
        progress.note = "1 of 2 files"
        text, deadline = "", time.monotonic() + 300
        while text.count("\n") < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
            text += capsys.readouterr().err
    assert text.count("\n") >= 3 and "\r" not in text
    line = r"fetch: a/b: 1\.0 KiB of 2\.0 KiB \(50%\), 1 of 2 files, 0 B/s, \d+ s"
    assert re.fullmatch(line, text.splitlines()[0])


def test_help_does_not_import_the_hubs_library() -> None:
    code = (
        "import sys; from enginix.cli import main\ntry: main(['fetch', '--help'])\nexcept SystemExit: pass\n"
    )
    code += "print([m for m in ('huggingface_hub', 'httpx', 'torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
