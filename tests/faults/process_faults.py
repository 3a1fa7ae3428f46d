"""Processes that are killed, stopped, told to end, or meet another of their kind."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

from fault_table import fault
from questions import PROMPT, streamed, whole
from setting import Served, Setting

from enginix.errors import MachineError
from enginix.serve.client import TritonClient


def killed(setting: Setting, model: str) -> str:
    with setting.serve() as s:
        body = {"text_input": PROMPT, "max_tokens": 1900, "end_id": -1, "stream": True}
        pieces = s.client.stream("ensemble", body)
        next(pieces)
        stub = s.model(model)
        start = time.monotonic()
        os.kill(stub, signal.SIGKILL)
        last: dict[str, Any] = {}
        try:
            for piece in pieces:
                last = piece
        except MachineError as e:
            last = {"error": str(e)}
        failed = time.monotonic() - start
        # Triton 2.51 may end the stream as if it were whole; only finish_reason tells.
        assert not last.get("finish_reason"), last
        _, said = s.process.communicate(timeout=120)
        assert s.process.returncode == 5, said
        assert f"{model}: its process" in said, said
        assert failed < 60
    return (
        "streams under way break off without a finish_reason; `enginix serve` names it and ends with "
        "status 5; systemd starts it again"
    )


@fault
def killed_ensemble(setting: Setting) -> str:
    """kill -9 of ensemble's process"""
    return killed(setting, "ensemble")


@fault
def killed_executor(setting: Setting) -> str:
    """kill -9 of tensorrt_llm's process"""
    return killed(setting, "tensorrt_llm")


@fault
def killed_server(setting: Setting) -> str:
    """kill -9 of tritonserver"""
    with setting.serve() as s:
        os.kill(s.child("bin/tritonserver"), signal.SIGKILL)
        _, said = s.process.communicate(timeout=60)
        assert s.process.returncode == 5, said
        assert "signal 9" in said
    return "`enginix serve` ends with status 5 and says so; systemd starts it again"


def under_load(setting: Setting, number: signal.Signals) -> tuple[int, list[str], str]:
    """Sends a signal while 16 streams run; (status, texts, expected text)."""
    started = threading.Semaphore(0)

    def read(client: TritonClient) -> str:
        body = {"text_input": PROMPT, "max_tokens": 400, "end_id": -1, "stream": True}
        text = ""
        for piece in client.stream("ensemble", body):
            if not text:
                started.release()
            text += str(piece["text_output"])
        return text

    with setting.serve("--exit-timeout", "60") as s:
        expected = streamed(s.client, tokens=400)
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            running = [pool.submit(read, s.client) for _ in range(16)]
            for _ in range(16):
                assert started.acquire(timeout=60)
            s.process.send_signal(number)
            texts = [r.result(120) for r in running]
        _, said = s.process.communicate(timeout=90)
        assert "stopped" in said
        return s.process.returncode, texts, expected


@fault
def terminated_under_load(setting: Setting) -> str:
    """SIGTERM while 16 streams run"""
    status, texts, expected = under_load(setting, signal.SIGTERM)
    assert status == 0 and texts == [expected] * 16
    return "all 16 are answered to their end, then exit status 0"


@fault
def restarted(setting: Setting) -> str:
    """stop and start on the same ports, three times"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for _ in range(3):
        with setting.serve("--http-port", port) as s:
            assert whole(s.client)
    return "it answers each time"


@fault
def port_clash(setting: Setting) -> str:
    """a second server on the same port"""
    with setting.serve() as s:
        port = s.client.url.rsplit(":", 1)[1]
        words = setting.words("--http-port", port)
        done = subprocess.run(
            words, env=setting.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 5 and f"port {port} is in use by" in done.stderr, done.stderr
        assert whole(s.client)
    return "refused before it starts, status 5, with the holder's name; the first goes on"


def stopped(setting: Setting, name: str, find: Callable[[Served], int]) -> str:
    with setting.serve() as s:
        os.kill(find(s), signal.SIGSTOP)
        begun = time.monotonic()
        _, said = s.process.communicate(timeout=180)
        assert s.process.returncode == 5 and f"{name}: it hangs" in said, said
        waited = time.monotonic() - begun
    # Looks are a second apart, and a busy machine's are longer.
    assert 50 < waited < 150, waited
    return "no answer comes; `enginix serve` notices it after a minute, and ends with status 5"


@fault
def stopped_executor(setting: Setting) -> str:
    """tensorrt_llm's process is stopped, as one that hangs"""
    return stopped(setting, "tensorrt_llm", lambda s: s.model("tensorrt_llm"))


@fault
def stopped_ensemble(setting: Setting) -> str:
    """ensemble's process is stopped"""
    return stopped(setting, "ensemble", lambda s: s.model("ensemble"))


@fault
def stopped_server(setting: Setting) -> str:
    """tritonserver is stopped"""
    return stopped(setting, "tritonserver", lambda s: s.child("bin/tritonserver"))


@fault
def killed_supervisor(setting: Setting) -> str:
    """kill -9 of `enginix serve` while 8 streams run"""
    with setting.serve() as s, concurrent.futures.ThreadPoolExecutor(8) as pool:
        running = [pool.submit(streamed, s.client, PROMPT, 1900) for _ in range(8)]
        assert s.computes()
        s.process.kill()
        s.process.wait()
        for stream in running:
            with contextlib.suppress(MachineError):
                stream.result(120)
    # setting.serve looks for processes and shared memory.
    with setting.serve() as s:
        assert whole(s.client)
    return "the server ends after its answers; nothing of it is left; the next start removes its directory"
