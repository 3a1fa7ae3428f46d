"""SIGTERM and SIGHUP end a command as Ctrl-C does: what it started ends, and nothing unfinished is left."""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from enginix.errors import HungUpWork, InterruptedWork, TerminatedWork

_ERRORS: dict[int, type[InterruptedWork]] = {signal.SIGTERM: TerminatedWork, signal.SIGHUP: HungUpWork}


def end_process(code: int) -> NoReturn:
    """End this process with a status, its exit functions run and its output written.

    The interpreter's own end would free all that modules hold, piece by piece: 0.2 s with PyTorch's. It is
    left to do so while other threads run, which it waits for.
    """
    if threading.active_count() > 1:
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where the caller closed it
        with contextlib.suppress(OSError, ValueError):  # main has told
            stream.flush()
    os._exit(code)


class SignalReceived(KeyboardInterrupt):
    """A signal ends this process; raised in the main thread wherever that is.

    Args:
        number: SIGTERM or SIGHUP.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def explain(self) -> InterruptedWork:
        """Return the error that users see; its exit code is a shell's for that signal."""
        return _ERRORS[self.number](f"ended by {signal.Signals(self.number).name}")


@contextlib.contextmanager
def end_as_interrupted() -> Iterator[None]:
    """Raise :class:`SignalReceived` once for SIGTERM and SIGHUP; those that follow do not disturb the end.

    A signal that is ignored, as SIGHUP below ``nohup``, or that has another handler is left alone. Outside
    the main thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in _ERRORS if signal.getsignal(number) is signal.SIG_DFL]

    def leave(number: int, _: FrameType | None) -> None:
        for other in ours:
            signal.signal(other, _continue_ending)
        if number == signal.SIGHUP:
            _leave_lost_terminal()
        raise SignalReceived(number)

    for number in ours:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in ours:
            # A command may have set its own, which lasts as before.
            if signal.getsignal(number) in (leave, _continue_ending):
                signal.signal(number, signal.SIG_DFL)


def _leave_lost_terminal() -> None:
    """Let output go nowhere where its terminal is closed: writing there is an error, which hides the end."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    for descriptor, event in poll.poll(0):
        if event & (select.POLLERR | select.POLLHUP):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def _continue_ending(_number: int, _: FrameType | None) -> None:
    """Do nothing; unlike an ignored signal, not inherited by programs that are started."""
