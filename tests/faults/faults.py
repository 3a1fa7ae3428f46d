"""Faults of a server and what comes of them, on the real tritonserver.

Makes the table in docs/reference/triton.md:

    python tests/faults/faults.py [NAME ...] [--write docs/reference/triton.md]

Each fault is a function: its docstring is the table's first column, what it returns the second. It raises
where the outcome is not acceptable: an accepted request lost, one that never ends, something left behind.
The Python that runs it needs the development environment, and python/ of this repository in PYTHONPATH.
Some faults mount file systems in a namespace of their own and need root.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import http.client
import itertools
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from setting import Served, Setting

from enginix.errors import MachineError
from enginix.serve.client import TritonClient

PROMPT = "Permission is hereby granted"
Fault = Callable[[Setting], str]
FAULTS: dict[str, Fault] = {}
MARKS = ("<!-- faults: made by tests/faults/faults.py -->", "<!-- end of faults -->")


def fault(function: Fault) -> Fault:
    """Adds a fault to the table."""
    FAULTS[function.__name__] = function
    return function


def whole(client: TritonClient, prompt: str = PROMPT, tokens: int = 24) -> str:
    return str(
        client.generate("ensemble", {"text_input": prompt, "max_tokens": tokens, "end_id": -1})["text_output"]
    )


def streamed(client: TritonClient, prompt: str = PROMPT, tokens: int = 24) -> str:
    body = {"text_input": prompt, "max_tokens": tokens, "end_id": -1, "stream": True}
    return "".join(str(p["text_output"]) for p in client.stream("ensemble", body))


def raw(served: Served, body: bytes, timeout: float = 60) -> int:
    """Status of a request with this body."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", int(served.client.url.rsplit(":", 1)[1]), timeout=timeout
    )
    connection.request("POST", "/v2/models/ensemble/generate", body)
    return connection.getresponse().status


def posted(served: Served, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """Status and body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", int(served.client.url.rsplit(":", 1)[1]), timeout=60)
    connection.request("POST", path, json.dumps(body), headers or {})
    response = connection.getresponse()
    return response.status, response.read()


@fault
def concurrent_streams(setting: Setting) -> str:
    """64 streams at once"""
    prompts = [f"{PROMPT} {word}" for word in ("copy", "work", "program", "court")] * 16
    with setting.serve() as s:
        alone = {p: streamed(s.client, p) for p in set(prompts)}
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            together = list(pool.map(lambda p: streamed(s.client, p), prompts))
        assert together == [alone[p] for p in prompts]
    return "all 64 get the text that each gets alone"


@fault
def oversized(setting: Setting) -> str:
    """a prompt of 1 million words, a body of 100 MB"""
    with setting.serve() as s:
        for body in (
            json.dumps({"text_input": "word " * 10**6, "max_tokens": 4}).encode(),
            b'{"text_input": "' + b"a" * 100_000_000 + b'", "max_tokens": 1}',
        ):
            assert raw(s, body, 300) >= 400
            assert whole(s.client)
    return "refused with a reason; the server goes on"


@fault
def malformed(setting: Setting) -> str:
    """300 bodies that are damaged, of wrong types, or noise"""
    rng = random.Random(7)
    good = json.dumps({"text_input": PROMPT, "max_tokens": 2, "temperature": 0.5}).encode()
    with setting.serve() as s:
        expected = whole(s.client)
        refused = 0
        for number in range(300):
            body = bytearray(good)
            if number % 3 == 0:
                body = body[: rng.randrange(len(body))]
            elif number % 3 == 1:
                for _ in range(3):
                    body[rng.randrange(len(body))] = rng.randrange(256)
            else:
                key = rng.choice(["text_input", "max_tokens", "temperature", "seed", "stop_words"])
                value = rng.choice([None, [], {}, "x", -1, 2**70, 1e400, [["a"]], True, "\ud800"])
                body = bytearray(json.dumps({**json.loads(good), key: value}).encode())
            refused += raw(s, bytes(body)) >= 400
        assert whole(s.client) == expected
    return f"{refused} refused, the others answered; the server goes on with the same answers"


@fault
def damaged_messages(setting: Setting) -> str:
    """300 requests whose messages or chat_template_args are damaged, of wrong types, or noise"""
    rng = random.Random(11)
    said = json.dumps([{"role": "user", "content": PROMPT}])
    values = [
        None,
        {},
        [],
        "x",
        1,
        [1],
        [{"role": "user"}],
        [{"role": "x", "content": ""}],
        "{{ 7*7 }}",
        "[" * 5000,
    ]
    with setting.serve() as s:
        expected = s.client.generate("ensemble", {"messages": said, "max_tokens": 4, "end_id": -1})
        refused = 0
        for number in range(300):
            body: dict[str, Any] = {"messages": said, "max_tokens": 2}
            if number % 3 == 0:
                body["messages"] = said[: rng.randrange(1, len(said))]
            elif number % 3 == 1:
                body["messages"] = json.dumps(rng.choice(values))
            else:
                body["chat_template_args"] = json.dumps(rng.choice([*values, {"tools": {}}, {"a": 1}]))
            refused += raw(s, json.dumps(body).encode()) >= 400
        found = s.client.generate("ensemble", {"messages": said, "max_tokens": 4, "end_id": -1})
        assert found["text_output"] == expected["text_output"]
    return f"{refused} refused, the others answered; the server goes on with the same answers"


@fault
def closed_interfaces(setting: Setting) -> str:
    """a client registers shared memory, loads a model, changes log settings, over HTTP and gRPC"""
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    key = setting.directory / "key"
    key.write_text("0123456789abcdef-key")
    region = {"key": "/enginix-none", "offset": 0, "byte_size": 64}
    with setting.serve("--admin-key-file", str(key)) as s:
        for path in ("v2/systemsharedmemory/region/x/register", "v2/repository/index", "v2/logging"):
            status, _ = posted(s, f"/{path}", region)
            assert status == 403, (path, status)
            status, _ = posted(s, f"/{path}", region, {"enginix-key": key.read_text()})
            assert status != 403, (path, status)
        with triton.InferenceServerClient(f"127.0.0.1:{s.grpc}") as client:
            for act in (
                lambda **k: client.register_system_shared_memory("x", "/enginix-none", 64, **k),
                lambda **k: client.load_model("ensemble", **k),
                lambda **k: client.get_log_settings(**k),
            ):
                try:
                    act()
                    raise AssertionError("a closed interface answered")
                except InferenceServerException as e:
                    assert "restricted" in str(e), e
            client.get_log_settings(headers={"triton-grpc-protocol-enginix-key": key.read_text()})
        assert whole(s.client)
    return "refused, unless the key of --admin-key-file comes with it"


@fault
def small_bodies(setting: Setting) -> str:
    """every pair of empty inputs at each model over HTTP and gRPC, and 2,000 random small bodies"""
    from small_bodies import Asked, empty_pairs, random_requests, send_all

    with setting.serve() as s:
        before = whole(s.client)
        asked = Asked(int(s.client.url.rsplit(":", 1)[1]), s.grpc)
        send_all(asked, empty_pairs())
        send_all(asked, itertools.islice(random_requests(1), 2000))
        assert not asked.unanswered and s.process.poll() is None, asked.unanswered[:3]
        assert whole(s.client) == before
        return (
            f"each of {sum(asked.answers.values())} is answered; the server goes on with the same answers. "
            "(Where Triton batches, as in kinds `tensorrt` and `llmapi`, tritonserver 2.51 crashes or never "
            "answers when all inputs have no rows; later versions were not tried)"
        )


@fault
def deep_json(setting: Setting) -> str:
    """JSON nested 50,000 deep"""
    with setting.serve() as s:
        try:
            status = raw(s, b'{"text_input":' + b"[" * 50_000 + b"]" * 50_000 + b"}")
        except (OSError, http.client.HTTPException):
            _, said = s.process.communicate(timeout=60)
            assert s.process.returncode == 5 and "signal 11" in said, said
            return (
                "**tritonserver 2.51 crashes** in its own JSON parser, before any model (NVIDIA reports "
                "fixes of this class in 26.05, not tried here); `enginix serve` ends with status 5, systemd "
                "starts it again. "
                "Keep clients that you do not trust behind a gateway"
            )
        assert status >= 400
        assert whole(s.client)
    return "refused; the server goes on"


def ask(served: Served, tokens: int, *, stream: bool) -> socket.socket:
    """Asks, and leaves the answer unread."""
    port = int(served.client.url.rsplit(":", 1)[1])
    connection = socket.create_connection(("127.0.0.1", port))
    body = json.dumps({"text_input": PROMPT, "max_tokens": tokens, "end_id": -1, "stream": stream})
    path = "/v2/models/ensemble/" + ("generate_stream" if stream else "generate")
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall((head + body).encode())
    return connection


def vanish(connection: socket.socket) -> None:
    """Resets the connection: SO_LINGER 0 sends the peer no end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.close()


@fault
def vanishing_clients(setting: Setting) -> str:
    """64 streaming clients vanish midway, while others stream"""
    with setting.serve() as s:
        expected = streamed(s.client, tokens=200)

        def begin_and_vanish(_: int) -> None:
            connection = ask(s, 1900, stream=True)
            connection.recv(100)
            vanish(connection)

        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            others = [pool.submit(streamed, s.client, PROMPT, 200) for _ in range(8)]
            list(pool.map(begin_and_vanish, range(64)))
            assert [o.result(300) for o in others] == [expected] * 8
        # 64 answers of 1900 tokens would take many times as long.
        s.await_idle(5)
        assert whole(s.client)
    return "their places are free again; the others' texts are whole"


@fault
def vanishing_without_streaming(setting: Setting) -> str:
    """8 clients without streaming vanish midway, over HTTP"""
    with setting.serve() as s:
        expected = whole(s.client)
        connections = [ask(s, 1900, stream=False) for _ in range(8)]
        assert s.computes()
        for connection in connections:
            assert not select.select([connection], [], [], 0)[0], "answered already"
            vanish(connection)
        try:
            s.await_idle(2)
            outcome = "their places are free again"
        except AssertionError:
            # Of a connection it reads nothing before it writes to it (triton-inference-server/server,
            # issue 7077).
            outcome = (
                "Triton 2.51 does not notice it, and their answers are computed to the end; it notices "
                "streams, and gRPC"
            )
        assert whole(s.client) == expected
        s.await_idle(120)
        assert whole(s.client) == expected
    return outcome


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


def inside(script: str, setting: Setting, *more: str) -> tuple[str, ...]:
    """A command that runs the rest in mounts of its own."""
    del setting, more
    return ("unshare", "--mount", "--propagation", "private", "sh", "-ec", f'{script}; exec "$@"', "sh")


@fault
def full_disk(setting: Setting) -> str:
    """/tmp is full"""
    temporary = Path(tempfile.mkdtemp(dir=setting.directory))
    script = f"mount -t tmpfs -o size=64k,nr_inodes=6 none {temporary}"
    words = [*inside(script, setting), *setting.words()]
    environment = {**setting.environment, "TMPDIR": str(temporary)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 5, (done.returncode, done.stderr)
    assert "No space left" in done.stderr and "Traceback" not in done.stderr, done.stderr
    return "refused at start, status 5: no space left"


@fault
def disk_fills_while_serving(setting: Setting) -> str:
    """/tmp fills up while it serves"""
    temporary = Path(tempfile.mkdtemp(dir=setting.directory))
    script = f"mount -t tmpfs -o size=1m none {temporary}; export TMPDIR={temporary}"
    fill = 'sh -c "sleep 12; head -c 2000000 /dev/zero >$TMPDIR/fill" 2>/dev/null & '
    with setting.serve(wrap=inside(f"{script}; {fill} true", setting)) as s:
        expected = whole(s.client)
        deadline = time.monotonic() + 14
        while time.monotonic() < deadline:
            assert whole(s.client) == expected
            assert streamed(s.client) == expected
    return "nothing changes: serving writes no files"


@fault
def tiny_shared_memory(setting: Setting) -> str:
    """/dev/shm of 3 MiB"""
    words = [*inside("mount -t tmpfs -o size=3m none /dev/shm", setting), *setting.words()]
    done = subprocess.run(
        words, env=setting.environment, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 5 and "needed for 2 Python model instances" in done.stderr, done.stderr
    return "refused before it starts, status 5, with what is needed"


@fault
def small_shared_memory(setting: Setting) -> str:
    """/dev/shm of 5 MiB, and 64 long prompts at once"""
    with setting.serve(wrap=inside("mount -t tmpfs -o size=5m none /dev/shm", setting)) as s:
        expected = whole(s.client)
        outcomes = []

        def tried(_: int) -> str:
            try:
                return "answer" if whole(s.client, "word " * 1500, 4) else "empty"
            except MachineError:
                return "error"

        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            outcomes = list(pool.map(tried, range(64)))
        after = "goes on"
        try:
            assert whole(s.client) == expected
        except MachineError:
            after = "refuses from then on"
    counts = ", ".join(f"{outcomes.count(o)} {o}s" for o in sorted(set(outcomes)))
    return f"{counts}; none hangs; the server {after}"


@fault
def grpc(setting: Setting) -> str:
    """gRPC with tritonclient: stream, cancel with streaming and without, wrong shapes and names"""
    import numpy as np
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    def inputs(tokens: int, name: str = "text_input", rows: int = 1, streaming: bool = True) -> list[Any]:
        text = triton.InferInput(name, [rows, 1], "BYTES")
        text.set_data_from_numpy(np.array([[PROMPT]] * rows, np.object_))
        number = triton.InferInput("max_tokens", [1, 1], "INT32")
        number.set_data_from_numpy(np.array([[tokens]], np.int32))
        stream = triton.InferInput("stream", [1, 1], "BOOL")
        stream.set_data_from_numpy(np.array([[streaming]]))
        end = triton.InferInput("end_id", [1, 1], "INT32")
        end.set_data_from_numpy(np.array([[-1]], np.int32))
        return [text, number, stream, end]

    def answer(client: Any, given: list[Any]) -> tuple[str, str]:
        pieces: list[str] = []
        errors: list[str] = []
        done = threading.Event()

        def take(result: Any, error: Any) -> None:
            if error is not None:
                errors.append(str(error))
                done.set()
                return
            pieces.append(result.as_numpy("text_output").reshape(-1)[0].decode())
            if result.as_numpy("finish_reason").reshape(-1)[0]:
                done.set()

        client.start_stream(take)
        client.async_stream_infer("ensemble", given)
        assert done.wait(60), "no end"
        client.stop_stream()
        return "".join(pieces), " ".join(errors)

    with setting.serve() as s:
        expected = whole(s.client)
        with triton.InferenceServerClient(f"127.0.0.1:{s.grpc}") as client:
            assert answer(client, inputs(24)) == (expected, "")
            assert "unexpected inference input" in answer(client, inputs(4, "text"))[1]
            assert answer(client, inputs(4, rows=2))[1]
            for streaming in (True, False):
                seen = threading.Event()
                client.start_stream(lambda result, error, seen=seen: seen.set())
                client.async_stream_infer("ensemble", inputs(1900, streaming=streaming))
                assert seen.wait(60) if streaming else s.computes() and not seen.is_set()
                client.stop_stream(cancel_requests=True)
                # The 1900 tokens would take several times as long.
                s.await_idle(2)
            try:
                client.infer("ensemble", inputs(4))
                raise AssertionError("a decoupled model answered a single call")
            except InferenceServerException as e:
                assert "decoupled" in str(e)
        assert whole(s.client) == expected
    return "the same text as over HTTP; mistakes are errors; a cancelled request frees its place"


def table(rows: dict[str, str]) -> str:
    """The table's text."""
    lines = ["| fault | outcome |", "|---|---|"]
    lines += [f"| {(FAULTS[name].__doc__ or name).strip()} | {outcome} |" for name, outcome in rows.items()]
    return "\n".join(lines)


def main() -> int:
    """Runs the faults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FAULTS)} (default: all)")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="put the table there; all faults must hold"
    )
    args = parser.parse_args()
    rows: dict[str, str] = {}
    failed = 0
    with tempfile.TemporaryDirectory(prefix="enginix-faults-") as directory:
        setting = Setting(Path(directory))
        for name in args.names or FAULTS:
            start = time.monotonic()
            try:
                rows[name] = FAULTS[name](setting)
                print(f"ok    {name} ({time.monotonic() - start:.0f} s): {rows[name]}", flush=True)
            except Exception as e:
                failed += 1
                print(f"FAIL  {name}: {type(e).__name__}: {str(e)[-1500:]}", flush=True)
    if args.write and not failed and not args.names:
        text = args.write.read_text()
        begin, end = text.index(MARKS[0]) + len(MARKS[0]), text.index(MARKS[1])
        args.write.write_text(f"{text[:begin]}\n{table(rows)}\n{text[end:]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
