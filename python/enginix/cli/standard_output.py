"""The ends that the standard output may have: closed by its reader, or full."""

from __future__ import annotations

import os
import sys

from enginix import console
from enginix.errors import EXIT_CLOSED_PIPE


def refuse_full_output(error: OSError) -> int:
    """Report that the standard output takes no more."""
    _discard_output()
    return console.report_error(error)


def leave_closed_pipe() -> int:
    """Flush the output and return the status of SIGPIPE: the reader closed the pipe on purpose."""
    _discard_output()
    return EXIT_CLOSED_PIPE


def _discard_output() -> None:
    """Flush the output; what is left of it where that fails goes nowhere."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # The interpreter flushes once more at its end, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def is_output_closed() -> bool:
    import select

    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
