"""Servers of one model restart one after the other under load: no request without a piece is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from openai_standin import StandIn

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def servers() -> Iterator[list[StandIn]]:
    """Two stand-ins."""
    found = [StandIn(), StandIn()]
    yield found
    for server in found:
        server.shutdown()


@pytest.fixture(scope="module")
def client(start_gateway: Callable[..., Any], servers: list[StandIn]) -> Iterator[Any]:
    triton = [{"kind": "triton", "url": s.url, "model": "ensemble"} for s in servers]
    other = [{"kind": "openai", "url": f"{s.url}/v1", "model": "mine"} for s in servers]
    with start_gateway({"models": {"tiny": triton, "other": other}}) as gateway:
        yield gateway.client()


# Model -> what each of its servers answers.
ANSWERS = {"tiny": "ab", "other": "hi"}


@pytest.mark.parametrize("how", ["refuse", "break", "break-after-headers"])
def test_nothing_is_lost(client: Any, servers: list[StandIn], how: str) -> None:
    """A server that ends resets connections, refuses, or breaks off before its first piece."""
    ended = threading.Event()
    answers: list[tuple[str, str]] = []

    def load(model: str, stream: bool) -> None:
        # Pauses: more requests would show nothing else, and take whole cores.
        while not ended.wait(0.1):
            try:
                said = [{"role": "user", "content": "x"}]
                answer = client.chat.completions.create(model=model, messages=said, stream=stream)
                if stream:
                    text = "".join(c.choices[0].delta.content or "" for c in answer if c.choices)
                else:
                    text = answer.choices[0].message.content
            except Exception as e:
                text = repr(e)
            answers.append((model, text))

    loads = [(model, stream) for model in ANSWERS for stream in (True, False)] * 2
    threads = [threading.Thread(target=load, args=one) for one in loads]
    for thread in threads:
        thread.start()
    failed: list[int] = []
    try:
        while len(answers) < len(threads):
            time.sleep(0.1)
        for server in servers:
            time.sleep(0.5)
            before = len(server.asked)
            server.failure = how
            time.sleep(2)
            server.failure = ""
            failed.append(len(server.asked) - before)
            # Longer than a server that failed rests.
            time.sleep(6)
    finally:
        for server in servers:
            server.failure = ""
        ended.set()
        for thread in threads:
            thread.join(60)
    # A check of health may come before every request to one of them.
    assert any(failed), "no request met a server that fails"
    assert min(sum(model == name for name, _ in answers) for model in ANSWERS) > 12
    assert set(answers) == set(ANSWERS.items())


def test_a_server_that_is_known_to_be_silent_is_not_asked(client: Any, servers: list[StandIn]) -> None:
    first, second = servers
    first.failure = "refuse"
    try:
        # The gateway asks each server for its health every 5 s.
        time.sleep(12)
        first.asked.clear()
        second.asked.clear()
        for stream in (False, True) * 5:
            answer = client.completions.create(model="tiny", prompt="x", stream=stream)
            assert "".join(c.choices[0].text for c in (answer if stream else [answer])) == "ab"
        assert (len(first.asked), len(second.asked)) == (0, 10)
    finally:
        first.failure = ""
