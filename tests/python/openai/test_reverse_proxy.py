"""The reverse proxies of docs/how-to/reverse-proxy.md, by nginx and Caddy themselves, over TLS."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from enginix.ports import choose_loopback_port

pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "reverse-proxy.md"
PROGRAMS = {"nginx": "nginx", "caddyfile": "caddy"}
PIECE = b'data: {"choices": []}\n\n'


class SlowStandIn(ThreadingHTTPServer):
    """A stand-in for the gateway: it sends a second piece when it is told that the first has arrived."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _SlowHandler)
        self.arrived, self.left = threading.Event(), threading.Event()
        self.heads: list[tuple[str, str | None]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _SlowHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SlowStandIn

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heads.append((self.path, self.headers["Authorization"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(PIECE)
        self.wfile.flush()
        if not self.server.arrived.wait(300):
            return
        # A client that has gone is noticed where something is written.
        try:
            for _ in range(3000):
                self.wfile.write(PIECE)
                self.wfile.flush()
                time.sleep(0.1)
        except OSError:
            self.server.left.set()


@dataclass
class Proxy:
    """A running proxy, and the certificate that its clients trust."""

    port: int
    certificate: Path

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificate))


def read_configuration(language: str) -> str:
    """The page's block of that language."""
    found = re.search(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found, language
    return found[1]


def replace_once(text: str, old: str, new: str) -> str:
    assert old in text, f"the page lacks {old}"
    return text.replace(old, new)


@pytest.fixture(params=["nginx", "caddyfile"])
def start_proxy(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[int], Any]:
    """Starts the proxy of the page in front of a port, with its ports and files in place of the page's."""
    language = request.param
    program = shutil.which(PROGRAMS[language]) or shutil.which(PROGRAMS[language], path="/usr/sbin")
    if program is None:
        pytest.skip(f"there is no {PROGRAMS[language]} on this machine (Debian: apt-get install nginx caddy)")
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl on this machine, which makes the certificate")

    @contextlib.contextmanager
    def start(behind: int) -> Iterator[Proxy]:
        certificate, key, port = tmp_path / "pem", tmp_path / "key", choose_loopback_port()
        subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
        new = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject)
        subprocess.run([*new, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
        text = read_configuration(language)
        text = replace_once(text, "/etc/ssl/llm.example.org.pem", str(certificate))
        text = replace_once(text, "/etc/ssl/llm.example.org.key", str(key))
        text = replace_once(text, "127.0.0.1:4000", f"127.0.0.1:{behind}")
        file = tmp_path / language
        if language == "nginx":
            text = replace_once(text, "listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
            text = replace_once(text, "llm.example.org", "localhost")
            temporary = "".join(
                f"{kind}_temp_path {tmp_path}/{kind};\n"
                for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            )
            text = (
                f"daemon off;\nmaster_process off;\npid {tmp_path}/pid;\nerror_log stderr;\nevents {{}}\n"
                f"http {{\naccess_log off;\n{temporary}{text}\n}}\n"
            )
            words = [program, "-c", str(file), "-p", str(tmp_path), "-e", "stderr"]
        else:
            text = replace_once(text, "llm.example.org {", f"https://localhost:{port} {{")
            text = "{\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust\n}\n" + text
            words = [program, "run", "--adapter", "caddyfile", "--config", str(file)]
        file.write_text(text)
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                words, stdout=log, stderr=log, env={"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
            )
        try:
            await_port(process, port, tmp_path / "log")
            yield Proxy(port, certificate)
        finally:
            process.terminate()
            process.wait(300)

    return start


def await_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 300
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
            return
        time.sleep(0.1)


def test_pieces_pass_at_once_and_a_client_that_goes_is_noticed(start_proxy: Callable[[int], Any]) -> None:
    behind = SlowStandIn()
    with start_proxy(behind.server_port) as proxy, httpx.Client(verify=proxy.trust, timeout=300) as client:
        headers = {"Authorization": "Bearer sk-x"}
        with client.stream("POST", f"{proxy.url}/v1/x", json={"stream": True}, headers=headers) as answer:
            pieces = answer.iter_raw()
            assert next(pieces) == PIECE
            behind.arrived.set()
            assert next(pieces)
        assert behind.left.wait(300), "the client went away, and the server went on"
    assert behind.heads == [("/v1/x", "Bearer sk-x")]
    behind.shutdown()


def test_openai_s_client_by_the_real_gateway(start_proxy: Callable[[int], Any], gateway: Any) -> None:
    import openai

    with start_proxy(gateway.port) as proxy:
        through = httpx.Client(verify=proxy.trust, timeout=600)
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=gateway.operator, http_client=through)
        question: dict[str, Any] = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Once"}],
            "max_tokens": 12,
        }
        whole = client.chat.completions.create(**question).choices[0].message.content
        pieces = list(client.chat.completions.create(**question, stream=True))
        assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == whole != ""
        assert {m.id for m in client.models.list()} >= {"tiny"}
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="sk-wrong-0000000000000000").models.list()


def test_what_is_closed(start_proxy: Callable[[int], Any], gateway: Any) -> None:
    with start_proxy(gateway.port) as proxy, httpx.Client(verify=proxy.trust, timeout=300) as client:
        for path in ("/", "/health/ready", "/v2/models/ensemble/generate", "/v1/../health/live", "/metrics"):
            assert client.get(f"{proxy.url}{path}").status_code == 404, path
        large = json.dumps({"model": "tiny", "prompt": "a" * (5 << 20)})
        with contextlib.suppress(httpx.WriteError):  # it may close while the body is under way
            headers = {"Authorization": f"Bearer {gateway.operator}"}
            answer = client.post(f"{proxy.url}/v1/completions", content=large, headers=headers)
            assert answer.status_code == 413
        plain = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=300)
        with contextlib.suppress(OSError, http.client.HTTPException):
            plain.request("GET", "/v1/models", headers={"Authorization": f"Bearer {gateway.operator}"})
            assert plain.getresponse().status == 400, "answered without TLS"
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{proxy.url}/v1/models")  # the certificate is not trusted here
