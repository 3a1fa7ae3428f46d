"""A server's private directory: held while its supervisor lives, removed when a later one starts."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import enginix
from enginix.errors import EXIT_MACHINE, MachineError
from enginix.serve.state_directory import StateDirectory


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield tmp_path
    tempfile.tempdir = None


def left_by_a_killed_process(temporary: Path) -> Path:
    """A supervisor that was killed: SIGKILL lets it remove nothing."""
    script = (
        "import os, signal; from enginix.serve.state_directory import StateDirectory; "
        "StateDirectory().path.joinpath('key').write_text('k'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {
        **os.environ,
        "TMPDIR": str(temporary),
        "PYTHONPATH": str(Path(enginix.__file__).parents[1]),
    }
    subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    (left,) = temporary.iterdir()
    assert (left / "key").exists()
    return left


def test_what_a_killed_supervisor_left_is_removed(temporary: Path) -> None:
    left = left_by_a_killed_process(temporary)
    directory = StateDirectory()
    assert not left.exists() and directory.path.stat().st_mode & 0o077 == 0
    directory.remove()
    directory.remove()
    assert not list(temporary.iterdir())


def test_a_living_supervisor_s_directory_stays(temporary: Path) -> None:
    first, second = StateDirectory(), StateDirectory()
    assert first.path.is_dir() and second.path.is_dir()
    first.remove()
    second.remove()


def test_foreign_directories_of_that_name_stay(temporary: Path) -> None:
    precious = temporary / "precious"
    precious.mkdir()
    (precious / "held").touch()
    (temporary / "enginix-serve-link").symlink_to(precious)
    (temporary / "enginix-serve-unfinished").mkdir()
    (temporary / "enginix-serve-file").touch()
    StateDirectory().remove()
    assert len(list(temporary.iterdir())) == 4 and (precious / "held").exists()


def test_no_place_for_temporary_files_is_the_machine_s_fault(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """serving, case c10: it was status 70, a bug to report."""

    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(MachineError) as caught:
        StateDirectory()
    assert caught.value.exit_code == EXIT_MACHINE and "set TMPDIR to a writable directory" in str(
        caught.value
    )
