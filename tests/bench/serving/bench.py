"""Measures the served ensemble beside the reference executor in this process, on the same prompts, in turns.

  python tests/bench/serving/bench.py [--requests 3600] [--rounds 3]

Needs the development environment. Loopback only, a model of 3.8 MB. Four things:

  cost      milliseconds that /generate takes over the executor for a prompt of 128 tokens and one answered
            token
  streams   tokens a second of 1, 8 and 64 concurrent /generate_stream over those of as many requests in
            process
  ready     seconds until the server answers, over loading the executor in a process of its own
  memory    own memory of all of the server's processes after an hour's worth of requests (one a second), over
            that after the first sixth of them

Beside the first two stands a model that does nothing (bare.py) in the same server, in the same rounds: what
Triton itself takes for these tensors through one Python model.

The client shares the machine's processors with the server, so what it takes is in the figures. Times mean
nothing where other work takes the processors; such a line says "not to be judged", by what the executor in
process got: less than nine tenths of a processor while it computed, in the median round. Processor times are
given beside, which other work disturbs least. Each line ends with the machine's load average.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
for place in (ROOT / "python", ROOT / "tests" / "faults"):
    sys.path.insert(0, str(place))

import bare  # noqa: E402
import torch  # noqa: E402
from setting import Served, Setting  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

from enginix.kinds.triton_repository.repository import build_triton_repository  # noqa: E402
from enginix.reference import Executor  # noqa: E402
from enginix.reference.scheduler import GenerationEvent, GenerationRequest, Scheduler  # noqa: E402
from enginix.triton.options import RepositoryOptions  # noqa: E402

TEXT = "Permission is hereby granted, free of charge, to any person obtaining a copy of this software "
TOKENS = 64
# Below this share of a processor the executor in process did not get what it could use.
STARVED = 0.9


def say(text: str) -> None:
    sys.stdout.write(f"{text}  [load {os.getloadavg()[0]:.1f}]\n")
    sys.stdout.flush()


def verdict(met: bool, aim: str, share: float, *, sound: bool = True) -> str:
    """What a figure says about an aim.

    Args:
        share: of a processor that the executor in process got, in the median round.
        sound: the figure can be true at all.
    """
    if share < STARVED or not sound:
        return f"not to be judged: the executor in process got {share:.2f} of a processor"
    return f"{'met' if met else 'not met'}: {aim}"


class InProcess:
    """The reference executor behind its scheduler, as the model tensorrt_llm has it."""

    def __init__(self, engine: Path, device: str = "cpu") -> None:
        # Building the engine took one; the server takes torch's default, as this does from here on.
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.tokenizer = Tokenizer.from_file(str(engine / "tokenizer" / "tokenizer.json"))
        self.scheduler = Scheduler(Executor.load(engine / "checkpoint", device=device), 64)
        self.number = 0

    def run(self, prompts: Sequence[str], tokens: int) -> float:
        """Seconds for all of them together, from text to text."""
        left, done, found = len(prompts), threading.Event(), {}
        lock = threading.Lock()

        def sink(event: GenerationEvent) -> None:
            nonlocal left
            found.setdefault(event.id, []).append(event.token)
            if event.finish is not None:
                with lock:
                    left -= 1
                    if not left:
                        done.set()

        start = time.perf_counter()
        for prompt in prompts:
            self.number += 1
            ids = tuple(self.tokenizer.encode(prompt).ids)
            self.scheduler.add(GenerationRequest(str(self.number), ids, tokens, frozenset()), sink)
        done.wait()
        answers = [[t for t in answer if t is not None] for answer in found.values()]
        for answer in answers:
            self.tokenizer.decode(answer)
        seconds = time.perf_counter() - start
        assert [len(answer) for answer in answers] == [tokens] * len(prompts)
        return seconds


def body(prompt: str, tokens: int, **more: Any) -> bytes:
    return json.dumps({"text_input": prompt, "max_tokens": tokens, "end_id": -1, **more}).encode()


def posted(path: str, data: bytes) -> bytes:
    """A request, ready to be sent: what a client's library takes is not the server's."""
    return f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


class Whole:
    """/generate over one kept connection."""

    def __init__(self, port: int, model: str = "ensemble") -> None:
        self.port, self.path = port, f"/v2/models/{model}/generate"
        self.connection = socket.create_connection(("127.0.0.1", port), timeout=30)

    def run(self, prompt: str, tokens: int) -> float:
        request = posted(self.path, body(prompt, tokens))
        start = time.perf_counter()
        self.connection.sendall(request)
        answer = b""
        # The last one of its chunks; a refusal has none, and is found out by the time-out.
        while not answer.endswith(b"\r\n0\r\n\r\n"):
            piece = self.connection.recv(1 << 16)
            assert piece, answer
            answer += piece
        seconds = time.perf_counter() - start
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        return seconds

    def close(self) -> None:
        self.connection.close()


def streams(port: int, prompts: Sequence[str], tokens: int, model: str = "ensemble") -> float:
    """Seconds until all streams have all of their tokens; counts them without looking into them."""
    selector = selectors.DefaultSelector()
    start = time.perf_counter()
    for prompt in prompts:
        data = body(prompt, tokens, stream=True)
        connection = socket.create_connection(("127.0.0.1", port), timeout=120)
        connection.sendall(posted(f"/v2/models/{model}/generate_stream", data))
        selector.register(connection, selectors.EVENT_READ, bytearray())
    left = len(prompts)
    while left:
        for key, _ in selector.select(120):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            piece = connection.recv(1 << 16)
            key.data.extend(piece)
            if not piece or b'"finish_reason":"length"' in key.data[-4096:]:
                # Where the sender falls behind, several tokens are in one response.
                assert b'"completion_tokens":%d,' % tokens in key.data[-4096:], bytes(key.data[-300:])
                selector.unregister(connection)
                connection.close()
                left -= 1
    return time.perf_counter() - start


def own_memory(served: Served) -> int:
    """Bytes of the pages that the server's processes own."""
    total = 0
    for pid in served.children():
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith(("RssAnon", "RssShmem")):
                    total += int(line.split()[1]) * 1024
    return total


def cost(inside: InProcess, whole: Whole, rounds: int) -> None:
    prompt = TEXT
    while len(inside.tokenizer.encode(prompt).ids) < 128:
        prompt += TEXT
    ids = inside.tokenizer.encode(prompt).ids[:128]
    prompt = inside.tokenizer.decode(ids)
    length = len(inside.tokenizer.encode(prompt).ids)
    empty = Whole(whole.port, bare.NAME)
    mine, theirs, nothing, shares = [], [], [], []
    for _ in range(100 * rounds):
        before = time.process_time()
        mine.append(inside.run([prompt], 1))
        shares.append((time.process_time() - before) / mine[-1])
        theirs.append(whole.run(prompt, 1))
        nothing.append(empty.run(prompt, 1))
    # Open ones would keep the server from ending before its time-out.
    whole.close()
    empty.close()
    share = statistics.median(shares)
    for name, of in (("median", statistics.median), ("fastest tenth", fastest_tenth)):
        a, b, c = (of(s) * 1000 for s in (mine, theirs, nothing))
        says = verdict(b - a <= 2, "2", share, sound=b > a)
        say(
            f"cost     {length} prompt tokens, {name}: in process {a:.2f} ms, /generate {b:.2f} ms: "
            f"{b - a:.2f} ms more ({says}); a model that does nothing {c:.2f} ms"
        )


def fastest_tenth(seconds: Sequence[float]) -> float:
    """Their median: other work on the machine only adds time."""
    return statistics.median(sorted(seconds)[: max(1, len(seconds) // 10)])


def processor(pids: Sequence[int]) -> float:
    """Seconds of processor time that processes have taken."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def load(inside: InProcess, served: Served, port: int, count: int, rounds: int) -> None:
    prompts = [f"{TEXT}{n}" for n in range(count)]
    pids = list(served.children())
    mine, theirs, nothing, shares = [], [], [], []
    taken, empty = 0.0, 0.0
    spent = 0.0
    for _ in range(rounds if count > 1 else 4 * rounds):
        before = time.process_time()
        mine.append(inside.run(prompts, TOKENS))
        spent += time.process_time() - before
        shares.append((time.process_time() - before) / mine[-1])
        before = processor(pids)
        theirs.append(streams(port, prompts, TOKENS))
        taken += processor(pids) - before
        before = processor(pids)
        nothing.append(streams(port, prompts, TOKENS, bare.NAME))
        empty += processor(pids) - before
    # Each round's neighbours: other work comes and goes.
    ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
    a, b, c = (count * TOKENS / statistics.median(s) for s in (mine, theirs, nothing))
    tokens = len(mine) * count * TOKENS / 1e6
    says = verdict(ratio >= 0.9, "0.90", statistics.median(shares), sound=ratio <= 1.05)
    say(
        f"streams  {count:2}: in process {a:.0f} tokens/s, served {b:.0f}: {ratio:.2f} ({says}); a model "
        f"that does nothing {c:.0f} responses/s; processor time a token {spent / tokens:.0f} µs in process, "
        f"{taken / tokens:.0f} µs served, {empty / tokens:.0f} µs a response of nothing"
    )


def ready(setting: Setting, seconds: float) -> None:
    script = (
        "import sys; from pathlib import Path; from enginix.reference import Executor; "
        "Executor.load(Path(sys.argv[1])).forward([[1]])"
    )
    engine = setting.directory / "engine" / "checkpoint"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", script, str(engine)], env=setting.environment, check=True)
    alone = time.perf_counter() - start
    say(f"ready    executor alone {alone:.1f} s, server {seconds:.1f} s: {seconds / alone:.2f}")


def memory(served: Served, port: int, requests: int) -> None:
    def ask(count: int) -> None:
        one = Whole(port)
        for n in range(count):
            one.run(f"{TEXT}{n % 97}", 1 + n % 16)
        one.close()

    def run(count: int) -> None:
        threads = [threading.Thread(target=ask, args=(count // 8,)) for _ in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()

    start = time.perf_counter()
    run(requests // 6)
    before = own_memory(served)
    run(requests - requests // 6)
    after = own_memory(served)
    ratio = after / before
    met = "met" if ratio <= 1.02 else "not met"
    seconds = time.perf_counter() - start
    say(
        f"memory   {requests} requests in {seconds:.0f} s: {before / 2**20:.0f} MiB after a sixth, "
        f"{after / 2**20:.0f} MiB at the end: {ratio:.3f} ({met}: 1.02)"
    )


def main() -> int:
    """Runs all four."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=3600, help="of the memory part (default: 3600)")
    parser.add_argument("--serve", action="append", default=[], help="an argument more of enginix serve")
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="enginix-bench-") as directory:
        setting = Setting(Path(directory))
        models = Path(directory) / "bare"
        models.mkdir()
        beside = bare.write(setting.repository, models)
        setting.repository = Path(directory) / "both"
        build_triton_repository(
            setting.directory / "engine",
            setting.repository,
            RepositoryOptions(max_batch_size=64),
            add_models=beside,
        )
        start = time.perf_counter()
        with setting.serve("--exit-timeout", "30", *args.serve) as served:
            seconds = time.perf_counter() - start
            port = int(served.client.url.rsplit(":", 1)[1])
            ready(setting, seconds)
            inside = InProcess(setting.directory / "engine")
            inside.run([TEXT], 4)
            cost(inside, Whole(port), args.rounds)
            for count in (1, 8, 64):
                load(inside, served, port, count, args.rounds)
            memory(served, port, args.requests)
            inside.scheduler.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
