"""A process and its descendants: in a group of its own, with signals passed on and no process left behind."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from types import FrameType

from enginix.errors import MachineError
from enginix.runtime.sandbox import Sandbox

_PR_SET_PDEATHSIG = 1
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
                preexec_fn=_die_with_parent(os.getpid()),
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
        tree = list_descendants(self.process.pid) | self.seen
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pid, begun in tree.items():
            if read_start_time(pid) == begun:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
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


def run_in_foreground(sandbox: Sandbox, words: list[str]) -> int:
    """Run a command to its end, with this process's input and output.

    Signals to this process are passed on. Returns the exit status; 128 + n for death by signal n.
    """
    with Child(sandbox, words, capture=False) as child:

        def forward(number: int, _: FrameType | None) -> None:
            child.signal(number)

        previous_handlers = {s: signal.signal(s, forward) for s in FORWARDED_SIGNALS}
        try:
            status = child.process.wait()
        finally:
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)
    return 128 - status if status < 0 else status


def list_processes() -> dict[int, tuple[int, int]]:
    """List every visible process: pid → (parent, start time in clock ticks)."""
    process_table = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as f:
                # The second field is a name in parentheses that may hold anything.
                fields = f.read().rsplit(b")", 1)[1].split()
                process_table[int(name)] = (int(fields[1]), int(fields[19]))
    return process_table


def read_start_time(pid: int) -> int | None:
    """Return a process's start time in clock ticks, which identifies it together with the pid. None if it
    has ended.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            fields = f.read().rsplit(b")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def list_descendants(root: int) -> dict[int, int]:
    """List the processes below ``root``: pid → start time."""
    process_table = list_processes()
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in process_table.items():
        children.setdefault(parent, []).append(pid)
    start_times: dict[int, int] = {}
    pending_pids = list(children.get(root, []))
    while pending_pids:
        pid = pending_pids.pop()
        if pid not in start_times:
            start_times[pid] = process_table[pid][1]
            pending_pids += children.get(pid, [])
    return start_times


def measure_resident_memory(root: int, below: dict[int, int]) -> int:
    """Measure the bytes of memory that ``root`` and the processes below it hold."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = 0
    for pid in (root, *below):
        with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/statm", "rb") as f:
            total += int(f.read().split()[1]) * page
    return total


def _die_with_parent(parent: int) -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return prepare
