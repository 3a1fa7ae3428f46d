"""A worker machine: it waits as the first process of a container, while another machine starts its ranks."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from enginix import console


def wait_as_worker(ready: Path) -> int:
    """Wait for SIGTERM or SIGINT, and then for the ranks' end; returns 0. A second signal ends it at once.

    The first process of a container inherits the container's orphans, such as mpirun's daemon, and must reap
    them; when it ends, the kernel ends all others.

    Args:
        ready: a file that exists while this waits, for a probe.
    """
    numbers = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    ready.touch()
    console.print_message("waiting as a worker; the first machine starts the ranks of this one")
    ending = False
    try:
        while _collect_children() or not ending:
            if signal.sigwait(numbers) != signal.SIGCHLD:
                if ending:
                    break
                ending = True
                ready.unlink(missing_ok=True)
    finally:
        ready.unlink(missing_ok=True)
    return 0


def _collect_children() -> bool:
    """Reap the children that have ended; returns whether any still runs."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    return False
