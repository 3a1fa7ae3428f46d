"""One start of a unit that is not installed yet, by systemd, under a name of its own."""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from enginix import process
from enginix.errors import EXIT_NO, EnginixError

RUNTIME_UNITS = Path("/run/systemd/system")
PORT = "@port@"
_LINES = 15


class Refused(EnginixError):
    """The new generation cannot serve; nothing was stopped."""

    exit_code = EXIT_NO
    kind = "rollout"


class _Ended(BaseException):
    """SIGTERM or SIGHUP came."""


def is_active(unit: str) -> bool:
    """Whether systemd runs it."""
    done = process.run(["systemctl", "show", "--property=ActiveState", "--value", unit], check=False)
    return done.stdout.strip() in ("active", "reloading", "deactivating")


def start(server: str, unit: Path, dropin: Path, units: Path = RUNTIME_UNITS) -> None:
    """Starts a copy of ``unit`` with what ``dropin`` changes, waits until it is started, and ends it.

    Started means what it means for the unit itself: it has answered. In the drop-in, ``@port@`` stands for a
    port that is free.

    Args:
        server: its name; the copy is ``enginix-trial-<name>``.
        units: where systemd looks for units that live until the next boot.

    Raises:
        Refused: it did not start; its last lines are in the error.
    """
    name = f"enginix-trial-{server}.service"
    with _installed(name, unit, dropin, units):
        process.run(["systemctl", "daemon-reload"])
        # The unit's own TimeoutStartSec bounds it.
        done = process.run(["systemctl", "start", name], check=False)
        if done.returncode != 0:
            raise Refused(
                f"the new generation did not start: {_why(name)}",
                where=f"enginix-{server}",
                fix="nothing was stopped, the old one still serves; its last lines:\n    "
                + "\n    ".join(_last_lines(name)),
            )


@contextmanager
def _installed(name: str, unit: Path, dropin: Path, units: Path) -> Iterator[None]:
    file, folder = units / name, units / f"{name}.d"
    kept = {n: signal.signal(n, _end) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        # What a killed trial left.
        _remove(name, file, folder)
        folder.mkdir(parents=True)
        file.write_text(unit.read_text("utf-8"), "utf-8")
        changes = dropin.read_text("utf-8").replace(PORT, str(_free_port()))
        (folder / "trial.conf").write_text(changes, "utf-8")
        yield
    finally:
        _remove(name, file, folder)
        for number, handler in kept.items():
            signal.signal(number, handler)


def _remove(name: str, file: Path, folder: Path) -> None:
    if file.exists() or folder.exists():
        process.run(["systemctl", "stop", name], check=False)
        file.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        process.run(["systemctl", "reset-failed", name], check=False)
        process.run(["systemctl", "daemon-reload"], check=False)


def _end(number: int, frame: FrameType | None) -> None:
    raise _Ended


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def _why(name: str) -> str:
    done = process.run(["systemctl", "show", "--property=Result,ExecMainStatus", name], check=False)
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return f"{found.get('Result', 'unknown')}, status {found.get('ExecMainStatus', 'unknown')}"


def _last_lines(name: str) -> list[str]:
    done = process.run(
        ["journalctl", "--no-pager", "--output=cat", f"--lines={_LINES}", f"--unit={name}"], check=False
    )
    return done.stdout.splitlines() or [f"none; see journalctl --unit={name}"]
