"""Until an OpenAI server has answered; the server is a stand-in over real sockets."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import enginix
from enginix.errors import EndpointError, EnginixError, UsageError
from enginix.rollout.ready import await_answer, await_triton

Answer = tuple[int, bytes]
MODELS = (200, b'{"data": [{"id": "m"}]}')
WORD = (200, b'{"choices": [{}]}')


@contextmanager
def server(answer: Callable[[str, str | None, int], Answer]) -> Iterator[str]:
    """A stand-in: path, key and number of the request → status and body."""
    seen = 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal seen
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = answer(self.path, self.headers.get("Authorization"), seen)
            seen += 1
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


def whole(path: str, key: str | None, number: int) -> Answer:
    return MODELS if path == "/v1/models" else WORD


def test_a_loading_server_is_waited_for() -> None:
    def loading(path: str, key: str | None, number: int) -> Answer:
        return (503, b"loading") if number < 3 else whole(path, key, number)

    with server(loading) as url:
        assert await_answer(url, 30) >= 0.4


def test_listing_models_is_no_answer() -> None:
    def mute(path: str, key: str | None, number: int) -> Answer:
        return MODELS if path == "/v1/models" else (500, b"no GPU")

    with server(mute) as url, pytest.raises(EndpointError, match=r"no answer after .*no GPU"):
        await_answer(url, 0.5)


@pytest.mark.parametrize(("key", "fine"), [("right", True), ("wrong", False), (None, False)])
def test_the_key(key: str | None, fine: bool) -> None:
    def guarded(path: str, given: str | None, number: int) -> Answer:
        return whole(path, given, number) if given == "Bearer right" else (401, b"who?")

    with server(guarded) as url:
        if fine:
            await_answer(url, 30, key=key)
        else:
            with pytest.raises(EndpointError, match="refused \\(401\\)"):
                await_answer(url, 30, key=key)


@pytest.mark.parametrize(("status", "fine"), [(200, True), (500, False)])
def test_triton_is_asked_to_generate(status: int, fine: bool) -> None:
    def triton(path: str, key: str | None, number: int) -> Answer:
        if path == "/v2/health/ready":
            return 200, b""
        assert path == "/v2/models/ensemble/generate"
        return status, b'{"text_output": "B"}' if fine else b'{"error": "the GPU is gone"}'

    with server(triton) as url:
        if fine:
            await_triton(url, 30, "reference")
        else:
            with pytest.raises(EndpointError, match="the GPU is gone"):
                await_triton(url, 0.3, "reference")


def test_nobody_listens() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{s.getsockname()[1]}"
        with pytest.raises(EndpointError, match="no answer after"):
            await_answer(url, 0.3)


@settings(deadline=None, max_examples=25)
@given(
    body=st.binary(max_size=40)
    | st.sampled_from([b"[]", b"null", b'{"data": [{}]}', b'{"data": [{"id": 1}], "choices": 1}', b"\xff"])
)
def test_any_answer_is_one_error_or_an_answer(body: bytes) -> None:
    with server(lambda path, key, n: (200, body)) as url:
        try:
            await_answer(url, 0.01)
        except EnginixError:
            return
        assert json.loads(body)["choices"]


@pytest.mark.parametrize("url", ["localhost:80", "https://a:1", "http://a", "http://a:b", "http://[::1", ""])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(UsageError, match="is not http://host:port"):
        await_answer(url, 1)


def ready(*words: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "enginix", "ready", *words],
        env=os.environ | {"PYTHONPATH": str(Path(enginix.__file__).parents[1])} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_server_is_the_process_and_systemd_is_told_by_another(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, server(whole) as url:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(120)
        # Its number comes by a pipe of its own: the other process writes to the same stdout, in either order.
        os.mkfifo(tmp_path / "number")
        script = f"echo $$ >{tmp_path / 'number'}; exec sleep 600"
        process = ready(url, "--run", "sh", "-c", script, NOTIFY_SOCKET=str(tmp_path / "notify"))
        try:
            assert int((tmp_path / "number").read_text()) == process.pid
            assert told.recv(100) == b"READY=1"
        finally:
            process.kill()
            process.communicate()


def test_a_server_that_never_answers_is_ended() -> None:
    with server(lambda path, key, n: (401, b"who?")) as url:
        process = ready(url, "--run", "sleep", "600")
        output = process.communicate(timeout=600)[0]
    assert "refused (401)" in output
    assert process.returncode == -15


def test_a_program_that_is_not_there() -> None:
    process = ready("http://127.0.0.1:9", "--timeout", "0.1", "--run", "/nowhere/server")
    assert "/nowhere/server: cannot start" in process.communicate(timeout=600)[0]
    assert process.returncode == 5


def test_a_credential_without_systemd() -> None:
    process = ready("http://127.0.0.1:9", "--api-key-credential", "key")
    assert "CREDENTIALS_DIRECTORY" in process.communicate(timeout=600)[0]
    assert process.returncode == 2
