"""A server that this process becomes is ended where its files change before it answers."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from enginix import beside
from enginix.ports import choose_loopback_port

SERVER = """
import http.server, os, sys, time
from pathlib import Path
from enginix.digests import SourceWatch
from enginix.beside import end_if_files_change
watched, port = Path(sys.argv[1]), sys.argv[2]
if len(sys.argv) == 3:
    watch = SourceWatch(watched)
    end_if_files_change(watch, "127.0.0.1", int(port))
    os.execv(sys.executable, [sys.executable, "-c", os.environ["SERVER"], str(watched), port, "loading"])
(watched.parent / "loading").touch()
while (watched.parent / "loading").exists():
    time.sleep(0.02)
http.server.HTTPServer(("127.0.0.1", int(port)), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def await_path(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("is_changed", [False, True])
def test_a_server_is_ended_if_its_files_change_while_it_loads(tmp_path: Path, is_changed: bool) -> None:
    watched, port = tmp_path / "engine", choose_loopback_port()
    watched.mkdir()
    (watched / "weights").write_bytes(b"whole")
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, watched, str(port)],
        env={**os.environ, "SERVER": SERVER, "PYTHONPATH": str(Path(beside.__file__).parents[1])},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        await_path(tmp_path / "loading")
        if is_changed:
            (watched / "weights").write_bytes(b"other")
        (tmp_path / "loading").unlink()
        if is_changed:
            assert server.wait(30) == -signal.SIGTERM
        else:
            await_answer(port)
            time.sleep(0.5)
            # Once it has answered, files may go: `enginix cache prune` removes an engine.
            (watched / "weights").unlink()
            with pytest.raises(subprocess.TimeoutExpired):
                server.wait(0.5)
    finally:
        server.kill()
        _, told = server.communicate()
    assert (f"error: {watched / 'weights'}: changed while it was read" in told) == is_changed, told


def await_answer(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/")
            connection.getresponse()
            return
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()
    pytest.fail("no answer")
