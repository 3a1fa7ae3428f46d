"""A machine whose ranks another one starts: it waits, as the first process of a container does."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from enginix import console


def wait(ready: Path) -> int:
    """Waits for SIGTERM or SIGINT; returns 0.

    The first process of a container inherits what is orphaned in it, such as ranks of an ended daemon, and
    has to collect them.

    Args:
        ready: a file that is there while this waits, for a probe.
    """
    numbers = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    ready.touch()
    console.say("waiting as a worker; the first machine starts the ranks of this one")
    try:
        while signal.sigwait(numbers) == signal.SIGCHLD:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
    finally:
        ready.unlink(missing_ok=True)
    return 0
