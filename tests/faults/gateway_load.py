"""The gateway before two servers: mixed load, faults and fuzzing; every answer is accounted for.

    python tests/faults/gateway_load.py [--minutes 15] [--seed 1]

OpenAI's own client streams and asks; others leave, send and read slowly, send noise, damaged and random
bodies, wrong keys, and more than their limit. Each minute a process of one of the two servers is killed or
told to end, and the server started again, as systemd does. Then:

- Each request that was sent has one outcome, and that outcome is one that its kind may have: an answer is
  the text that the question gets alone; a stream is that text, or a beginning of it and an error.
- The gateway's log has one line, and its metrics one count, for each of them.
- Its memory and open files are what they were after the first third.

The Python that runs it needs the development environment, and python/ of this repository in PYTHONPATH.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from gateway_clients import ALLOWED, QUESTIONS, Clients, Wrong, compose
from gateway_processes import Gateway, RestartedServer, ask, start_gateway
from setting import Setting

from enginix.ports import reserve_ports

# What may happen to the two servers, each minute one of it.
FAULTS = ("executor", "ensemble", "tritonserver", "command", "SIGTERM")
# Growth that LiteLLM's caches and the allocator may have.
MEMORY_GROWTH = 1.15

# Requests that never become one: the gateway writes no line about them.
UNLOGGED = ("idle", "noise")


class GatewayLoad:
    """Clients of one gateway, a thread each; ``outcomes`` counts, ``wrong`` says what must not be."""

    def __init__(self, clients: Clients, seed: int) -> None:
        self.sent: collections.Counter[str] = collections.Counter()
        self.outcomes: collections.Counter[tuple[str, str]] = collections.Counter()
        self.wrong: list[str] = []
        self._stopped, self._lock = threading.Event(), threading.Lock()
        several = {"stream": 5, "whole": 2}
        kinds = [item for item in clients.kinds().items() for _ in range(several.get(item[0], 1))]
        self._threads = [
            threading.Thread(target=self._repeat, args=(name, client, random.Random(f"{seed} {number}")))
            for number, (name, client) in enumerate(kinds)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait for all that is under way.

        Raises:
            Wrong: something hangs.
        """
        self._stopped.set()
        for thread in self._threads:
            thread.join(300)
            if thread.is_alive():
                raise Wrong("a request hangs")

    def _repeat(self, name: str, client: Callable[[random.Random], str], chance: random.Random) -> None:
        while not self._stopped.is_set():
            self.sent[name] += 1
            try:
                outcome = client(chance)
            except Exception as e:
                outcome = f"{type(e).__name__}: {e}"
            with self._lock:
                self.outcomes[name, outcome[:60]] += 1
                if outcome not in ALLOWED[name]:
                    self.wrong.append(f"{time.strftime('%T')} {name}: {outcome}")
            self._stopped.wait(chance.random() / 5)


def watch_load(
    load: GatewayLoad, gateway: Gateway, servers: list[RestartedServer], seconds: float, seed: int
) -> tuple[list[int], collections.Counter[str]]:
    """Fail servers in turns until the time is over.

    Returns:
        The gateway's memory, measured each 5 s; the faults.
    """
    chance = random.Random(seed)
    memory, faults = [], collections.Counter[str]()
    begin = last = time.monotonic()
    while time.monotonic() < begin + seconds and gateway.process.poll() is None and not load.wrong:
        time.sleep(5)
        memory.append(gateway.memory())
        # One at a time, and the last minute without: a model needs a server.
        if (
            time.monotonic() > last + 45
            and time.monotonic() < begin + seconds - 60
            and gateway.answering() == 2
        ):
            fault = FAULTS[sum(faults.values()) % len(FAULTS)]
            chance.choice(servers).fail(fault)
            faults[fault] += 1
            last = time.monotonic()
    return memory, faults


def judge_load(
    load: GatewayLoad, gateway: Gateway, memory: list[int], before: tuple[int, int, int]
) -> list[str]:
    """Return what is not as it must be.

    Args:
        before: requests logged, requests counted and open files before the load.
    """
    logged, counted, files = before
    found = list(load.wrong[:5])
    expected = sum(number for name, number in load.sent.items() if name not in UNLOGGED)
    for name, number in load.sent.items():
        if sum(n for (kind, _), n in load.outcomes.items() if kind == name) != number:
            found.append(f"{name}: requests without an outcome")
    if gateway.logged() - logged != expected:
        found.append(f"{expected} requests, {gateway.logged() - logged} lines in the log")
    if gateway.counted() - counted != expected:
        found.append(f"{expected} requests, {gateway.counted() - counted} counted")
    third = max(1, len(memory) // 3)
    early, late = max(memory[:third]), max(memory[-third:])
    print(f"memory {early / 2**20:.0f} MiB in the first third, {late / 2**20:.0f} MiB in the last")
    print(f"open files {files} before, {gateway.files()} after")
    if late > early * MEMORY_GROWTH:
        found.append("memory grows")
    # Connections to the servers are kept.
    if gateway.files() > files + 70:
        found.append("files stay open")
    return found


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=15, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="enginix-load-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        setting = Setting(directory)
        ports = reserve_ports("127.0.0.1", [("first", 0), ("second", 0)])
        servers = [RestartedServer(setting, int(port)) for port in ports]
        for server in servers:
            stack.callback(server.stop)
        gateway = stack.enter_context(start_gateway(directory, [s.url for s in servers]))
        expected = {}
        for question in QUESTIONS:
            answer = ask(gateway, "POST", "/v1/completions", json.dumps(compose(*question)).encode())[1]
            expected[question] = str(json.loads(answer)["choices"][0]["text"])
        before = (gateway.logged(), gateway.counted(), gateway.files())
        load = GatewayLoad(Clients(gateway, expected), args.seed)
        memory, faults = watch_load(load, gateway, servers, args.minutes * 60, args.seed)
        load.stop()
        time.sleep(12)
        for (kind, outcome), number in sorted(load.outcomes.items()):
            print(f"{number:7} {kind}: {outcome}")
        print("faults:", dict(faults), "statuses of servers:", *(dict(s.statuses) for s in servers))
        wrong = judge_load(load, gateway, memory, before)
        ready = ask(gateway, "GET", "/health/ready")
        if ready[0] != 200:
            wrong.append(f"not ready in the end: {ready[1].decode()}")
        if wrong:
            print("\n".join(gateway.log.read_text().splitlines()[-30:]))
    if gateway.process.returncode != 0:
        wrong.append(f"the gateway ended with status {gateway.process.returncode}")
    print("\n".join(wrong) if wrong else f"all {sum(load.sent.values())} accounted for")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
