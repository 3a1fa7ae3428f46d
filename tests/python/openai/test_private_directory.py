"""The gateway's private directory goes with it, also where a signal ends its start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[3] / "python"
START = """
import time
from enginix.gateway.run import _enter_private_directory
with _enter_private_directory() as directory:
    (directory / "config.yaml").touch()
    print(directory, flush=True)
    time.sleep(300)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_start_that_is_ended_leaves_no_directory(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", f"import signal; signal.signal(2, signal.default_int_handler)\n{START}"],
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        directory = Path(process.stdout.readline().strip())
        assert (directory / "config.yaml").exists()
        process.send_signal(number)
        assert process.wait(60) != 0
    assert not directory.exists()
