"""Load, clients that vanish, idle connections and random bodies together; every answer is accounted for.

    python tests/faults/mixed_load.py [--minutes 15] [--seed 1]

Texts must be those that each question gets alone. Every request that was sent is answered, refused for a
reason, or was left by its own client; in the end the executor is idle and SIGTERM ends the server with 0. The
Python that runs it needs the development environment, and python/ of this repository in PYTHONPATH.
"""

from __future__ import annotations

import argparse
import collections
import random
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from questions import PROMPT, ask, streamed, vanish, whole
from setting import Served, Setting
from small_bodies import Asked, random_requests

from enginix.errors import MachineError

QUESTIONS = [(f"{PROMPT} {word}", tokens) for word in ("copy", "work", "court") for tokens in (4, 64, 200)]


class MixedLoad:
    """Clients of one server, a thread each.

    Args:
        served: the server.
        expected: what each question gets alone.
        seed: of all that is random.
    """

    def __init__(self, served: Served, expected: dict[tuple[str, int], str], seed: int) -> None:
        self._served, self._expected = served, expected
        self.sent: collections.Counter[str] = collections.Counter()
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self._stopped = threading.Event()
        clients = [*[self._stream] * 5, *[self._generate] * 2, self._vanish, self._idle, self._fuzz]
        self._threads = [
            threading.Thread(target=self._repeat, args=(client, random.Random(f"{seed} {number}")))
            for number, client in enumerate(clients)
        ]
        self._asked = Asked(int(served.client.url.rsplit(":", 1)[1]), served.grpc)
        self._requests = random_requests(seed)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait for the answers that are under way."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, client: Callable[[random.Random], str], chance: random.Random) -> None:
        name = client.__name__.strip("_")
        while not self._stopped.is_set():
            self.sent[name] += 1
            try:
                outcome = client(chance)
            except (MachineError, OSError, AssertionError) as e:
                outcome = "wrong"
                self.wrong.append(f"{name}: {type(e).__name__}: {e}")
            self.outcomes[f"{name}: {outcome}"] += 1
            time.sleep(chance.random() / 10)

    def _stream(self, chance: random.Random) -> str:
        question = chance.choice(QUESTIONS)
        assert streamed(self._served.client, *question) == self._expected[question], question
        return "answered"

    def _generate(self, chance: random.Random) -> str:
        question = chance.choice(QUESTIONS)
        assert whole(self._served.client, *question) == self._expected[question], question
        return "answered"

    def _vanish(self, chance: random.Random) -> str:
        connection = ask(self._served, 1900, stream=True)
        connection.recv(chance.randrange(1, 2000))
        vanish(connection)
        return "left"

    def _idle(self, chance: random.Random) -> str:
        port = int(self._served.client.url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"POST /v2/models/ensemble/generate HTTP/1.1\r\nHost"[: chance.randrange(50)])
            self._stopped.wait(chance.random() * 5)
        return "left"

    def _fuzz(self, _: random.Random) -> str:
        before = len(self._asked.unanswered)
        request = next(self._requests)
        self._asked.send(request)
        assert len(self._asked.unanswered) == before, f"no answer to {request}"
        return "answered or refused"


def main() -> int:
    """Runs it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=15, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, Setting(Path(directory)).serve() as served:
        expected = {question: whole(served.client, *question) for question in QUESTIONS}
        load = MixedLoad(served, expected, args.seed)
        end = time.monotonic() + args.minutes * 60
        while time.monotonic() < end and served.process.poll() is None and not load.wrong:
            time.sleep(1)
        load.stop()
        print(dict(sorted(load.outcomes.items())))
        if load.wrong or served.process.poll() is not None:
            print("wrong:", load.wrong[:3])
            return 1
        assert sum(load.sent.values()) == sum(load.outcomes.values())
        served.await_idle(30)
        assert whole(served.client, *QUESTIONS[0]) == expected[QUESTIONS[0]]
    print(f"all {sum(load.sent.values())} accounted for; ended with status {served.process.returncode}")
    return served.process.returncode


if __name__ == "__main__":
    sys.exit(main())
