"""Starts other programs; all of enginix does it here."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from enginix.errors import MachineError
from enginix.process_group import kill_tree

INHERITED = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE")


def build_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return a small explicit environment: a few inherited names, then ``extra``; never a token."""
    env = {name: os.environ[name] for name in INHERITED if name in os.environ}
    env.update(extra or {})
    return env


def run_program(
    args: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: Path | None = None,
    check: bool = True,
    timeout: float | None = None,
    asks_at_terminal: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end with an explicit environment and captured output.

    Where this function is left before, as by a signal, the program is killed with all that it started.

    Args:
        args: program and arguments; never a shell string.
        env: added to the small inherited environment.
        stdin: file to read as standard input; None leaves the caller's.
        check: raise when the exit status is not zero.
        timeout: seconds.
        asks_at_terminal: leave it the terminal, which it may ask for a password; else it leads a session.

    Raises:
        MachineError: the program is missing, timed out, or failed while ``check`` is on.
    """
    words = [os.fspath(a) for a in args]
    try:
        with contextlib.ExitStack() as stack:
            child = stack.enter_context(
                subprocess.Popen(
                    words,
                    env=build_environment(env),
                    cwd=cwd,
                    stdin=None if stdin is None else stack.enter_context(stdin.open("rb")),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    start_new_session=not asks_at_terminal,
                )
            )
            try:
                texts = child.communicate(timeout=timeout)
            except BaseException:
                kill_tree(child.pid)
                raise
            completed = subprocess.CompletedProcess(words, child.returncode, *texts)
    except OSError as e:
        raise _explain_start(words[0], e) from e
    except subprocess.TimeoutExpired as e:
        raise MachineError(f"still running after {timeout} s, killed", where=words[0]) from e
    if check and completed.returncode != 0:
        last = read_last_line(completed.stderr or completed.stdout)
        raise MachineError(f"exit status {completed.returncode}: {last}", where=words[0])
    return completed


@contextlib.contextmanager
def start_program(
    args: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[Callable[[], subprocess.CompletedProcess[str]]]:
    """Start a program that runs beside this one; it and all that it started are killed at the block's end.

    Args:
        args: program and arguments; never a shell string.
        env: added to the small inherited environment.

    Yields:
        A function that waits for the program's end and returns its status and output.

    Raises:
        MachineError: the program is missing.
    """
    words = [os.fspath(a) for a in args]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            child = subprocess.Popen(
                words,
                env=build_environment(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        except OSError as e:
            raise _explain_start(words[0], e) from e

        def wait() -> subprocess.CompletedProcess[str]:
            status = child.wait()
            texts = []
            for stream in (out, err):
                stream.seek(0)
                texts.append(stream.read().decode("utf-8", "replace"))
            return subprocess.CompletedProcess(words, status, *texts)

        try:
            yield wait
        finally:
            if child.returncode is None:
                kill_tree(child.pid)
            child.wait()


def read_last_line(output: str, otherwise: str = "no output") -> str:
    """Return the last line that a program printed; ``otherwise`` where it printed none."""
    lines = output.strip().splitlines()
    return lines[-1] if lines else otherwise


def _explain_start(program: str, error: OSError) -> MachineError:
    if isinstance(error, FileNotFoundError):
        return MachineError("program not found", where=program, fix="install it, or put it on PATH")
    return MachineError(f"cannot be started: {error.strerror}", where=program, fix="pass a program that runs")


def query_python(python: Path, script: str, *words: str, failure: str, fix: str | None = None) -> Any:
    """Run a script by another Python, and return the JSON that it prints.

    Args:
        failure: what is wrong where it prints none.

    Raises:
        MachineError: it prints no JSON; has the last line of its errors.
    """
    done = run_program([python, "-c", script, *words], check=False)
    try:
        return json.loads(done.stdout)
    except ValueError as e:
        last = read_last_line(done.stderr)
        raise MachineError(f"{failure}: {last}", where=python, fix=fix) from e
