"""Idle connections, and headers sent byte by byte, do not block other clients and are closed."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from enginix.gateway import connections
from enginix.gateway.connections import limited_protocol, raise_file_limit
from openai_standin import StandIn


class StandInCycle:
    """A request under way."""

    response_complete = False


class StandInProtocol(asyncio.Protocol):
    """In place of uvicorn's: a request is a line, its answer is told by a test."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.cycle: StandInCycle | None = None
        self._text = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._text += data
        if self._text.endswith(b"\n"):
            self._text, self.cycle = b"", StandInCycle()

    def on_response_complete(self) -> None:
        pass

    def respond(self) -> None:
        assert self.cycle is not None
        self.cycle.response_complete = True
        self.on_response_complete()


class StandInTransport:
    def __init__(self) -> None:
        self.aborted = False

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


def connected(kind: Any) -> Any:
    protocol = kind()
    protocol.connection_made(StandInTransport())
    return protocol


def test_a_header_has_its_time_however_it_comes() -> None:
    async def run() -> None:
        kind = limited_protocol(StandInProtocol, 100, header_seconds=0.3)
        silent, slow, asks, again = (connected(kind) for _ in range(4))
        asks.data_received(b"GET\n")
        again.data_received(b"GET\n")
        again.respond()
        for _ in range(8):
            await asyncio.sleep(0.05)
            if not slow.transport.aborted:
                slow.data_received(b"x")
        states = [p.transport.aborted for p in (silent, slow, asks, again)]
        # A request under way may take as long as it does; the next one's header has its time again.
        assert states == [True, True, False, True]
        asks.respond()
        assert not asks.transport.aborted
        await asyncio.sleep(0.4)
        assert asks.transport.aborted

    asyncio.run(run())


def test_beyond_the_most_the_longest_silent_one_goes() -> None:
    async def run() -> None:
        kind = limited_protocol(StandInProtocol, 3)
        asks = connected(kind)
        asks.data_received(b"GET\n")
        first, second = connected(kind), connected(kind)
        third = connected(kind)
        assert [p.transport.aborted for p in (asks, first, second, third)] == [False, True, False, False]
        first.connection_lost(None)
        for protocol in (second, third):
            protocol.data_received(b"GET\n")
        # All three ask something, so the new one goes.
        fourth = connected(kind)
        assert fourth.transport.aborted and not third.transport.aborted

    asyncio.run(run())


def test_the_limit_of_files_is_raised() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        most = raise_file_limit()
        raised = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert raised == min(hard, connections._MOST_FILES) or hard == resource.RLIM_INFINITY
        assert 2 * most < raised
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def idle(port: int, number: int) -> Iterator[list[socket.socket]]:
    """Connections of which each second one has sent a part of a header."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    with ExitStack() as stack:
        opened = []
        for i in range(number):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=120))
            if i % 2:
                connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-A: ")
            opened.append(connection)
        yield opened
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "wrap"), [(2000, ()), (400, ("bash", "-c", 'ulimit -n 256; exec "$@"', "-"))]
)
def test_idle_connections_hinder_nobody(
    start_gateway: Callable[..., Any], number: int, wrap: tuple[str, ...]
) -> None:
    import httpx

    standin = StandIn()
    server = {"kind": "triton", "url": standin.url, "model": "ensemble"}
    with start_gateway({"models": {"tiny": [server]}}, wrap=wrap) as gateway:
        gateway.client().completions.create(model="tiny", prompt="x")
        with idle(gateway.port, number) as opened:
            for _ in range(3):
                assert httpx.get(f"{gateway.url}/health/live", timeout=120).status_code == 200
                assert gateway.client().completions.create(model="tiny", prompt="x").choices[0].text == "ab"
            deadline = time.monotonic() + connections.HEADER_SECONDS + 300
            while any(map(is_open, opened)):
                assert time.monotonic() < deadline, sum(map(is_open, opened))
                time.sleep(0.5)
            assert httpx.get(f"{gateway.url}/health/ready", timeout=120).status_code == 200
        assert "does not answer" not in gateway.log.read_text()
    standin.shutdown()


UPGRADE = (
    b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.mark.slow
def test_upgrades_and_two_lengths(start_gateway: Callable[..., Any]) -> None:
    """Requests for a websocket take no places for good; what follows a body of two lengths is not read."""
    import httpx

    standin = StandIn()
    server = {"kind": "triton", "url": standin.url, "model": "ensemble"}
    wrap = ("bash", "-c", 'ulimit -n 256; exec "$@"', "-")
    with start_gateway({"models": {"tiny": [server]}}, wrap=wrap) as gateway:
        statuses: set[bytes] = set()
        for _ in range(400):
            with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
                connection.sendall(UPGRADE)
                statuses.add(connection.recv(64)[:12])
        # Until the header's time of those has passed.
        time.sleep(connections.HEADER_SECONDS + 2)
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
            # By Content-Length the second request is the first one's body.
            key = f"Authorization: Bearer {gateway.operator}\r\n"
            second = f"GET /v1/models HTTP/1.1\r\nHost: x\r\n{key}\r\n"
            first = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\n{key}Content-Length: {5 + len(second)}\r\n"
            connection.sendall(f"{first}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{second}".encode())
            raw = b"".join(iter(lambda: connection.recv(65536), b""))
            assert raw.startswith(b"HTTP/1.1 400 ") and raw.count(b"HTTP/1.1 ") == 1
        for _ in range(20):
            assert httpx.get(f"{gateway.url}/health/live", timeout=10).status_code == 200
        assert statuses == {b"HTTP/1.1 401"}
    standin.shutdown()
