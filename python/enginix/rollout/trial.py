"""Start a systemd unit that is not installed yet, under a separate name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enginix import process
from enginix.errors import EXIT_CHECK_FAILED, EnginixError
from enginix.ports import choose_loopback_port

RUNTIME_UNITS = Path("/run/systemd/system")
PORT = "@port@"
_LINES = 15


class TrialError(EnginixError):
    """The new generation cannot serve; the running one was not stopped."""

    exit_code = EXIT_CHECK_FAILED
    kind = "rollout"


def is_active(unit: str) -> bool:
    """Return whether systemd runs the unit."""
    completed = process.run_program(
        ["systemctl", "show", "--property=ActiveState", "--value", unit], check=False
    )
    return completed.stdout.strip() in ("active", "reloading", "deactivating")


def start_trial(server: str, unit: Path, dropin: Path) -> None:
    """Start a copy of ``unit`` with the changes of ``dropin``, wait until it is started, and stop it.

    A unit counts as started when its server has answered. In the drop-in, ``@port@`` stands for a free port.

    Args:
        server: name of the server; the copy is ``enginix-trial-<name>``.

    Raises:
        TrialError: it did not start; its last lines are in the error.
    """
    name = f"enginix-trial-{server}.service"
    with _install_units(name, unit, dropin):
        process.run_program(["systemctl", "daemon-reload"])
        # The unit's own TimeoutStartSec bounds it.
        completed = process.run_program(["systemctl", "start", name], check=False)
        if completed.returncode != 0:
            raise TrialError(
                f"the new generation did not start: {_describe_failure(name)}",
                where=f"enginix-{server}",
                fix="the old one still serves; last lines of the new one:\n    "
                + "\n    ".join(_read_last_lines(name)),
            )


@contextmanager
def _install_units(name: str, unit: Path, dropin: Path) -> Iterator[None]:
    file, folder = RUNTIME_UNITS / name, RUNTIME_UNITS / f"{name}.d"
    try:
        # The leftovers of a killed trial.
        _remove_units(name, file, folder)
        folder.mkdir(parents=True)
        file.write_text(unit.read_text("utf-8"), "utf-8")
        changes = dropin.read_text("utf-8").replace(PORT, str(choose_loopback_port()))
        (folder / "trial.conf").write_text(changes, "utf-8")
        yield
    finally:
        _remove_units(name, file, folder)


def _remove_units(name: str, file: Path, folder: Path) -> None:
    if file.exists() or folder.exists():
        process.run_program(["systemctl", "stop", name], check=False)
        file.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        process.run_program(["systemctl", "reset-failed", name], check=False)
        process.run_program(["systemctl", "daemon-reload"], check=False)


def _describe_failure(name: str) -> str:
    completed = process.run_program(
        ["systemctl", "show", "--property=Result,ExecMainStatus", name], check=False
    )
    properties = dict(line.split("=", 1) for line in completed.stdout.splitlines() if "=" in line)
    return f"{properties.get('Result', 'unknown')}, status {properties.get('ExecMainStatus', 'unknown')}"


def _read_last_lines(name: str) -> list[str]:
    completed = process.run_program(
        ["journalctl", "--no-pager", "--output=cat", f"--lines={_LINES}", f"--unit={name}"], check=False
    )
    return completed.stdout.splitlines() or [f"no lines; see journalctl --unit={name}"]
