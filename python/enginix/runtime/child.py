"""A process and its descendants: in a group of its own, with signals passed on and no process left behind."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from types import FrameType

from enginix.errors import MachineError
from enginix.process_group import end_with_parent, kill_tree, list_processes, read_start_time
from enginix.runtime.sandbox import Sandbox

FORWARDED_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


class Child:
    """A running command of a :class:`enginix.runtime.sandbox.Sandbox`; a context manager that always ends it
    with all its descendants.

    Args:
        capture: merge its output into one stream, ``process.stdout``.
    """

    def __init__(self, sandbox: Sandbox, words: list[str], *, capture: bool) -> None:
        self.sandbox = sandbox
        info_read_fd, info_write_fd = os.pipe()
        try:
            self.process = subprocess.Popen(
                sandbox.command(words, info=info_write_fd if sandbox.rootfs is not None else None),
                env=sandbox.environment() if sandbox.rootfs is None else {},
                cwd=sandbox.work,
                stdin=subprocess.DEVNULL if capture else None,
                stdout=subprocess.PIPE if capture else None,
                stderr=subprocess.STDOUT if capture else None,
                start_new_session=True,
                pass_fds=(info_write_fd,) if sandbox.rootfs is not None else (),
                preexec_fn=end_with_parent(signal.SIGKILL),
            )
        except OSError as e:
            os.close(info_read_fd)
            raise MachineError(f"cannot start: {e.strerror}", where=words[0]) from e
        finally:
            os.close(info_write_fd)
        self._info_fd: int | None = info_read_fd
        self._init: int | None = None
        self.seen: dict[int, int] = {}

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        if self._info_fd is not None:
            os.close(self._info_fd)
            self._info_fd = None

    def signal(self, number: int) -> None:
        """Send a signal to the command itself; bubblewrap would die of it and kill the command."""
        target = self._command()
        if target is None:
            # Not started yet: nothing to end gracefully.
            self.kill()
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(target, number)

    def kill(self) -> None:
        """Kill the group and every descendant, also those that left the group, and wait for the first
        process.
        """
        kill_tree(self.process.pid, self.seen)
        self.process.wait()
        self._wait_for_namespace()

    def _wait_for_namespace(self) -> None:
        """Wait for the end of the process namespace's first process, which ends after all the others."""
        if self.sandbox.rootfs is None or self._info_fd is None:
            return
        if self._init is None:
            self._init = self._read_info(0)
        deadline = time.monotonic() + 10
        while (
            self._init is not None and read_start_time(self._init) is not None and time.monotonic() < deadline
        ):
            time.sleep(0.01)

    def _command(self) -> int | None:
        if self.sandbox.rootfs is None:
            return self.process.pid if self.process.poll() is None else None
        if self._init is None:
            self._init = self._read_info(5)
        if self._init is None:
            return None
        # bubblewrap's own init has the command as its first child.
        below = [pid for pid, (parent, _) in list_processes().items() if parent == self._init]
        return min(below) if below else None

    def _read_info(self, seconds: float) -> int | None:
        assert self._info_fd is not None
        text = b""
        while select.select([self._info_fd], [], [], seconds)[0]:
            piece = os.read(self._info_fd, 4096)
            text += piece
            if not piece or b"}" in text:
                break
        try:
            return int(json.loads(text)["child-pid"])
        except (ValueError, KeyError):
            return None


def run_in_foreground(
    sandbox: Sandbox, words: list[str], when_started: Callable[[], None] = lambda: None
) -> int:
    """Run a command to its end, with this process's input and output.

    Signals to this process are passed on. Returns the exit status; 128 + n for death by signal n.

    Args:
        when_started: called while the command runs and its signals are passed on.
    """
    with Child(sandbox, words, capture=False) as child:

        def forward(number: int, _: FrameType | None) -> None:
            child.signal(number)

        previous_handlers = {s: signal.signal(s, forward) for s in FORWARDED_SIGNALS}
        try:
            when_started()
            status = child.process.wait()
        finally:
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)
    return 128 - status if status < 0 else status


def measure_resident_memory(root: int, below: dict[int, int]) -> int:
    """Measure the bytes of memory that ``root`` and the processes below it hold."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = 0
    for pid in (root, *below):
        with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/statm", "rb") as f:
            total += int(f.read().split()[1]) * page
    return total
