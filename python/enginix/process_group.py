"""Processes with all that they start: groups, descendants, and an end together with this process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Mapping

_PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals) -> Callable[[], None]:
    """Return a ``preexec_fn`` after which the kernel sends a signal to the child when this process ends.

    Call it before threads exist: the signal comes when the thread ends that started the child.
    """
    parent = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def signal_group(group: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to every process of a group, if there is one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def kill_tree(root: int, seen: Mapping[int, int] | None = None) -> None:
    """Kill a process that this one started: its group, if it leads one, and all its descendants.

    Args:
        seen: processes below it of an earlier look (pid → start time), which may have left it since.
    """
    start_times = list_descendants(root) | dict(seen or {})
    signal_group(root)
    with contextlib.suppress(ProcessLookupError):
        os.kill(root, signal.SIGKILL)
    kill_processes(start_times)


def kill_children() -> None:
    """Kill what this process started and has not ended, as where a signal came while it was starting."""
    for pid in list_descendants(os.getpid()):
        kill_tree(pid)


def is_group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def kill_processes(start_times: Mapping[int, int]) -> None:
    """Kill processes (pid → start time) that are still the same ones."""
    for pid, begun in start_times.items():
        if read_start_time(pid) == begun:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


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
