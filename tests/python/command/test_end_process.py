"""The end of a command's process: exit functions run, output is written, the status is the command's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "python")}
PROGRAM = """
import atexit, sys, threading, time
from enginix.ending import end_process
atexit.register(print, "last")
def work():
    time.sleep(0.2)
    print("thread")
threads = {threads}
for _ in range(threads):
    threading.Thread(target=work).start()
sys.stdout.write("unflushed ")
end_process({status})
"""


@pytest.mark.parametrize(("status", "threads"), [(0, 0), (3, 0), (3, 1)])
def test_nothing_is_lost(status: int, threads: int) -> None:
    program = PROGRAM.format(status=status, threads=threads)
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == status and not done.stderr
    assert done.stdout.split() == ["unflushed", *["thread"] * threads, "last"]


def test_a_closed_output_ends_with_the_status() -> None:
    program = "import sys; from enginix.ending import end_process; end_process(5)"
    for redirection in (">&-", "2>&-", ">&- 2>&-", ">/dev/full"):
        shell = f"{sys.executable} -c '{program}' {redirection}"
        assert subprocess.run(["bash", "-c", shell], env=ENVIRONMENT, timeout=60).returncode == 5
