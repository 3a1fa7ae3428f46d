"""Work beside a server that this process becomes or waits for, in a process of its own."""

from __future__ import annotations

import http.client
import os
import signal
import time
from collections.abc import Callable

from enginix.console import print_message
from enginix.digests import SourceWatch
from enginix.errors import EnginixError
from enginix.ports import reachable_address
from enginix.process_group import read_start_time

_PAUSE = 0.2


def run_beside(task: Callable[[], None]) -> None:
    """Run a task in a process of its own; if it fails, it ends this one with SIGTERM and says why."""
    server = os.getpid()
    child = os.fork()
    if child == 0:
        # A grandchild: a server does not expect a child process.
        if os.fork() == 0:
            try:
                task()
            except EnginixError as e:
                print_message(f"error: {e}")
                os.kill(server, signal.SIGTERM)
            finally:
                os._exit(0)
        os._exit(0)
    os.waitpid(child, 0)


def end_if_files_change(watch: SourceWatch, host: str, port: int) -> None:
    """End this process, or the server that it becomes, if a file changes before the server answers."""
    if not watch.is_watching:
        return
    server, address = os.getpid(), reachable_address(host)
    started = read_start_time(server)

    def compare_when_loaded() -> None:
        while not _answers(address, port):
            if read_start_time(server) != started:
                return
            time.sleep(_PAUSE)
        watch.require_unchanged()

    run_beside(compare_when_loaded)


def _answers(address: str, port: int) -> bool:
    """Return whether an HTTP server answers; one that is loading does not, or says that it is not ready."""
    connection = http.client.HTTPConnection(address, port, timeout=10)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
