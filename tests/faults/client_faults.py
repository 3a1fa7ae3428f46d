"""What clients do wrong: too much, too little, damaged, closed to them, and away."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import itertools
import json
import random
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from fault_table import fault
from questions import PROMPT, ask, posted, raw, streamed, vanish, whole
from setting import Setting


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


@fault
def idle_connections(setting: Setting) -> str:
    """2,000 connections that send nothing, half a header, or half a body, over HTTP and gRPC"""
    halves = (
        b"",
        b"POST /v2/models/ensemble/generate HTTP/1.1\r\nHost: x\r\nContent-Le",
        b"POST /v2/models/ensemble/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{",
    )
    with setting.serve() as s, contextlib.ExitStack() as connections:
        expected = whole(s.client)
        alone = min(seconds_of(lambda: whole(s.client)) for _ in range(5))
        for number in range(2000):
            port = s.grpc if number % 4 == 0 else int(s.client.url.rsplit(":", 1)[1])
            connection = connections.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.sendall(halves[number % 3] if number % 4 else b"")
        beside = min(seconds_of(lambda: whole(s.client)) for _ in range(5))
        assert whole(s.client) == expected and streamed(s.client) == expected
        # Twice, or what one wait for a processor takes.
        assert beside < 2 * alone + 0.2, (alone, beside)
    return (
        "they hinder no one. Triton closes none of its own accord over HTTP; a gateway or a proxy in front "
        "has time-outs"
    )


def seconds_of(act: Callable[[], object]) -> float:
    begun = time.monotonic()
    act()
    return time.monotonic() - begun


@fault
def foreign_names(setting: Setting) -> str:
    """names of earlier versions, of other interfaces, and misspelt ones"""
    names = (
        "random_seed",
        "runtime_top_k",
        "request_output_len",
        "num_beams",
        "do_sample",
        "temprature",
        "x",
    )
    with setting.serve() as s:
        for name in names:
            status, text = posted(
                s, "/v2/models/ensemble/generate", {"text_input": PROMPT, "max_tokens": 2, name: 1}
            )
            assert status == 400 and f"{name}: no such input" in text.decode(), (name, status, text)
        assert whole(s.client)
    return "refused by name, with the one that it is here"
