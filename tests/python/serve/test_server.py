"""The real tritonserver on a real repository: the pipeline's last stage, and what goes wrong there."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginix.errors import MachineError
from enginix.kinds.triton_repository.repository import build_triton_repository
from enginix.serve.client import TritonClient
from enginix.serve.supervisor import StartError
from enginix.triton.options import RepositoryOptions

pytestmark = pytest.mark.slow
PROMPT = "This License applies to any"


def stream(client: TritonClient, **more: Any) -> list[dict[str, Any]]:
    return list(client.stream("ensemble", {"text_input": PROMPT, "max_tokens": 16, "stream": True, **more}))


def generate(client: TritonClient, **more: Any) -> dict[str, Any]:
    return client.generate("ensemble", {"text_input": PROMPT, "max_tokens": 16, **more})


def test_generate_and_stream_say_the_same(running: Any) -> None:
    whole = generate(running.client, return_num_input_tokens=True, return_num_output_tokens=True)
    chunks = stream(running.client, return_num_output_tokens=True)
    assert "".join(c["text_output"] for c in chunks) == whole["text_output"] != ""
    assert chunks[-1]["num_output_tokens"] == whole["num_output_tokens"]
    assert chunks[-1]["finish_reason"] == whole["finish_reason"]
    assert [c["finish_reason"] for c in chunks[:-1]] == [""] * (len(chunks) - 1)
    assert len(chunks) in (whole["num_output_tokens"], whole["num_output_tokens"] + 1)
    assert whole["num_input_tokens"] > 1


def test_the_answer_is_the_executor_s_own(running: Any, served_engine: Path) -> None:
    from tokenizers import Tokenizer

    from enginix.reference import Executor

    tokenizer = Tokenizer.from_file(str(served_engine / "tokenizer" / "tokenizer.json"))
    executor = Executor.load(served_engine / "checkpoint")
    tokens = list(tokenizer.encode(PROMPT).ids)
    prompt = len(tokens)
    for _ in range(16):
        (logits,) = executor.forward([tokens])
        tokens.append(int(logits[-1].argmax()))
    assert generate(running.client, end_id=-1)["text_output"] == tokenizer.decode(tokens[prompt:])


def test_sampling_is_repeatable_by_seed(running: Any) -> None:
    texts = [
        generate(running.client, temperature=1.5, top_p=0.95, seed=s)["text_output"] for s in (1, 1, 2, 3)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_stop_words_and_the_prompt_in_the_output(running: Any) -> None:
    plain = generate(running.client, end_id=-1)["text_output"]
    word = plain.split()[1]
    stopped = generate(running.client, end_id=-1, stop_words=[f" {word}"])
    assert stopped["finish_reason"] == "stop"
    assert stopped["text_output"] == plain[: plain.index(f" {word}")]
    assert generate(running.client, end_id=-1, exclude_input_in_output=False)["text_output"] == PROMPT + plain


def test_log_probabilities(running: Any) -> None:
    answer = generate(running.client, return_log_probs=True, end_id=-1)
    assert len(answer["output_log_probs"]) == 16
    assert answer["cum_log_probs"] == pytest.approx(sum(answer["output_log_probs"]), rel=1e-4)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"max_tokens": 4}, "text_input is missing, and so are messages"),
        ({"messages": "[]", "max_tokens": 4}, "not a JSON list of at least one message"),
        ({"text_input": "a", "messages": "[]", "max_tokens": 4}, "both given"),
        ({"text_input": "", "max_tokens": 4}, "text_input is empty"),
        ({"text_input": "a", "max_tokens": 0}, "max_tokens: 0 is not at least 1"),
        ({"text_input": "a", "max_tokens": 10**6}, "above this server's limit"),
        ({"text_input": "word " * 5000, "max_tokens": 4}, "prompt and answer together"),
        ({"text_input": "a", "max_tokens": "x"}, "non-signed-integer"),
        ({"text_input": ["a", "b"], "max_tokens": [4, 4]}, "text_input: 2 rows; send one prompt a request"),
        ({"text_input": "a", "max_tokens": 4, "temprature": 1.0}, "did you mean temperature?"),
        # serving, case c07: names of NVIDIA's models and of other interfaces.
        (
            {"text_input": "a", "max_tokens": 4, "random_seed": 5},
            "random_seed: no such input; here it is seed",
        ),
        ({"text_input": "a", "max_tokens": 4, "runtime_top_k": 100}, "here it is top_k"),
        ({"text_input": "a", "max_tokens": 4, "runtime_top_p": 0.5}, "here it is top_p"),
        ({"text_input": "a", "max_tokens": 4, "request_output_len": 2}, "here it is max_tokens"),
        ({"text_input": "a", "max_tokens": 4, "num_beams": 4}, "here it is beam_width"),
        ({"text_input": "a", "max_tokens": 4, "do_sample": True}, "temperature: 0 is greedy"),
        ({"text_input": "a", "max_tokens": 4, "logprobs": 2}, "here it is return_log_probs"),
        (
            {"text_input": "a", "max_tokens": 4, "priority": 2},
            "priority: no such input; known are text_input",
        ),
        ({"text_input": "a", "max_tokens": 4, "parameters": {"x": 2}}, "x: no such input"),
        ({"text_input": "a", "max_tokens": 4, "end_id": 50256}, "end_id: 50256 is not one of the model's"),
        ({"text_input": "a", "max_tokens": 4, "temperature": 1e38}, "temperature: at least 0, below 1e6"),
        ({"text_input": "a", "max_tokens": 4, "beam_width": 4}, "beam_width: 4 is not supported"),
        ({"text_input": "a", "max_tokens": 4, "bad_words": ["b"]}, "cannot ban words"),
    ],
)
def test_malformed_requests_are_refused_and_the_server_goes_on(
    running: Any, body: Any, expected: str
) -> None:
    with pytest.raises(MachineError) as caught:
        running.client.generate("ensemble", body)
    assert expected in str(caught.value)
    with pytest.raises(MachineError):
        list(running.client.stream("ensemble", {**body, "stream": True}))
    assert generate(running.client)["text_output"]


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\x00\xff", b"[1]", b'{"text_input": "\\ud800", "max_tokens": 1}']
)
def test_requests_that_are_not_json(running: Any, raw: bytes) -> None:
    connection = http.client.HTTPConnection(*running.client._address, timeout=300)
    connection.request("POST", "/v2/models/ensemble/generate", raw)
    assert connection.getresponse().status >= 400
    assert generate(running.client)["text_output"]


def test_concurrent_streams_each_get_their_own_answer(running: Any) -> None:
    prompts = [f"{PROMPT} {word}" for word in ("copy", "work", "program", "court") * 4]

    def ask(prompt: str) -> str:
        chunks = running.client.stream("ensemble", {"text_input": prompt, "max_tokens": 48, "stream": True})
        return "".join(c["text_output"] for c in chunks)

    alone = {prompt: ask(prompt) for prompt in set(prompts)}
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ask, prompts))
    assert together == [alone[p] for p in prompts]
    assert len(set(together)) > 1


def test_all_three_ports_are_on_loopback_only(running: Any) -> None:
    from enginix.ports import _listening_inodes

    endpoints = running.server.plan.endpoints
    for port in (endpoints.http, endpoints.grpc, endpoints.metrics):
        assert _listening_inodes(port)
        lines = (
            Path("/proc/net/tcp").read_text().splitlines() + Path("/proc/net/tcp6").read_text().splitlines()
        )
        local = [line.split()[1] for line in lines[1:] if ":" in line.split()[1] and line.split()[3] == "0A"]
        assert {a.rsplit(":", 1)[0] for a in local if int(a.rsplit(":", 1)[1], 16) == port} <= {
            "0100007F",
            "0000000000000000FFFF00000100007F",  # the same as an IPv6 address, as gRPC binds it
        }


def test_other_users_read_no_shared_memory(running: Any) -> None:
    regions = list(Path("/dev/shm").glob(f"{running.server._prefix}*"))
    assert regions and all(region.stat().st_mode & 0o077 == 0 for region in regions)


def test_triton_s_own_parameters_change_nothing(running: Any) -> None:
    """What tritonclient sends beside the inputs."""
    import tritonclient.grpc as grpc

    plain = generate(running.client, id="x", triton_enable_empty_final_response=True)["text_output"]
    inputs = [grpc.InferInput("text_input", [1, 1], "BYTES"), grpc.InferInput("max_tokens", [1, 1], "INT32")]
    inputs[0].set_data_from_numpy(np.array([[PROMPT.encode()]], np.object_))
    inputs[1].set_data_from_numpy(np.int32([[16]]))
    options: list[dict[str, Any]] = [
        {},
        {"enable_empty_final_response": True},
        {"priority": 3, "timeout": 10**8},
        {"sequence_id": 3, "sequence_start": True, "sequence_end": True},
        {"request_id": "x"},
    ]
    for given in options:
        said: list[Any] = []
        with grpc.InferenceServerClient(f"127.0.0.1:{running.server.plan.endpoints.grpc}") as client:
            client.start_stream(lambda result, error, said=said: said.append(error or result))
            client.async_stream_infer("ensemble", inputs, **given)
            client.stop_stream()
        texts = [r.as_numpy("text_output") for r in said]
        assert b"".join(t.item() for t in texts if t is not None).decode() == plain, given


def cancelled(one: Any, seconds: float) -> None:
    """Asks without streaming, and cancels after some time.

    Over gRPC: Triton 2.51 does not notice over HTTP (triton-inference-server/server, issue 7077).
    ."""
    import tritonclient.grpc as grpc

    inputs = [
        grpc.InferInput("text_input", [1, 1], "BYTES"),
        grpc.InferInput("max_tokens", [1, 1], "INT32"),
        grpc.InferInput("end_id", [1, 1], "INT32"),
    ]
    values = (np.array([[PROMPT.encode()]], np.object_), np.int32([[1500]]), np.int32([[-1]]))
    for tensor, value in zip(inputs, values, strict=True):
        tensor.set_data_from_numpy(value)
    said: list[Any] = []
    with grpc.InferenceServerClient(f"127.0.0.1:{one.server.plan.endpoints.grpc}") as client:
        client.start_stream(lambda result, error: said.append(result))
        client.async_stream_infer("ensemble", inputs)
        time.sleep(seconds)
        assert said == []
        client.stop_stream(cancel_requests=True)


def seconds_of(call: Callable[[], object]) -> float:
    start = time.monotonic()
    call()
    return time.monotonic() - start


def test_a_client_that_vanishes_frees_its_place(serve: Any, served_engine: Path, tmp_path: Path) -> None:
    build_triton_repository(served_engine, tmp_path / "repository", RepositoryOptions(max_batch_size=1))
    body = {"text_input": PROMPT, "max_tokens": 1500, "end_id": -1, "stream": True}
    with serve(tmp_path / "repository") as one:
        whole = seconds_of(lambda: list(one.client.stream("ensemble", body)))
        for streaming in (True, False):
            if streaming:
                pieces = one.client.stream("ensemble", body)
                next(pieces)
                pieces.close()
            else:
                cancelled(one, whole / 8)
            waited = seconds_of(lambda: generate(one.client, max_tokens=1))
            if waited >= whole / 2:  # the machine may have become slower meanwhile
                whole = max(whole, seconds_of(lambda: list(one.client.stream("ensemble", body))))
            # Only one request runs at a time: this one waited for the vanished one to be noticed, not for its
            # end.
            assert waited < whole / 2, streaming
        assert one.server.stop() == 0


def test_sigterm_lets_running_answers_finish(serve: Any, served_repository: Path) -> None:
    with serve(served_repository) as one:
        pieces = one.client.stream(
            "ensemble", {"text_input": PROMPT, "max_tokens": 300, "end_id": -1, "stream": True}
        )
        first = next(pieces)
        one.server.process.send_signal(signal.SIGTERM)
        chunks = [first, *pieces]
        # Where the server falls behind, several tokens come together.
        assert chunks[-1]["completion_tokens"] == 300
        assert chunks[-1]["finish_reason"] == "length"
        assert one.server.stop() == 0
        prefix, state = one.server._prefix, one.server._state
    assert not list(Path("/dev/shm").glob(f"{prefix}*"))
    assert not state.exists()


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm"])
def test_a_killed_python_model_is_an_error_and_not_a_hang(
    serve: Any, served_repository: Path, model: str
) -> None:
    with serve(served_repository) as one:
        stubs = [
            int(p.name)
            for p in Path("/proc").iterdir()
            if p.name.isdigit()
            and _group(int(p.name)) == one.server.process.pid
            and f"/{model}/" in _words(p)
        ]
        assert len(stubs) == 1
        for stub in stubs:
            os.kill(stub, signal.SIGKILL)
        with pytest.raises(MachineError) as caught:
            TritonClient("127.0.0.1", one.server.plan.endpoints.http, timeout=300).generate(
                "ensemble", {"text_input": PROMPT, "max_tokens": 4}
            )
        assert "timed out" not in str(caught.value)


def _group(process: int) -> int:
    try:
        return os.getpgid(process)
    except OSError:
        return -1


def _words(process: Path) -> str:
    try:
        return (process / "cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


@pytest.mark.parametrize(
    ("model", "break_it", "reason"),
    [
        (
            "ensemble",
            lambda p: p.write_text("raise RuntimeError('no luck today')\n"),
            "no luck today",
        ),
        ("ensemble", lambda p: p.write_text("class ("), "SyntaxError"),
        (
            "tensorrt_llm",
            lambda p: p.write_text(p.read_text().replace("enginix.triton.models.", "enginix.triton.modelz.")),
            "modelz",
        ),
    ],
)
def test_a_broken_model_is_named_with_its_reason(
    serve: Any,
    served_repository: Path,
    tmp_path: Path,
    model: str,
    break_it: Callable[[Path], None],
    reason: str,
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(served_repository, broken)
    break_it(broken / model / "1" / "model.py")
    with pytest.raises(StartError) as caught, serve(broken):
        pass
    assert str(caught.value).startswith(f"{model}: failed to load: ")
    assert reason in caught.value.what


def test_a_tokenizer_that_has_gone_is_named(serve: Any, served_engine: Path, tmp_path: Path) -> None:
    copy = tmp_path / "engine"
    shutil.copytree(served_engine, copy, symlinks=True)
    build_triton_repository(copy, tmp_path / "repository")
    (copy / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(StartError) as caught, serve(tmp_path / "repository"):
        pass
    assert "no tokenizer.json" in str(caught.value)
    assert caught.value.where == "ensemble"


def test_golden_tokens_that_differ_stop_the_start(
    serve: Any, served_repository: Path, tmp_path: Path
) -> None:
    from enginix.errors import GateError

    other = tmp_path / "other"
    shutil.copytree(served_repository, other)
    described = json.loads((other / "enginix.json").read_text())
    described["results"]["golden"]["tokens"][-1] ^= 1
    (other / "enginix.json").write_text(json.dumps(described))
    with pytest.raises(GateError, match="the golden prefix continues with"), serve(other):
        pass


def command(served_repository: Path, tritonserver: Any, python: Path, *words: str) -> list[str]:
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    given = [
        "serve",
        str(served_repository),
        "--tritonserver",
        str(tritonserver.directory),
        "--python",
        str(python),
    ]
    return [sys.executable, "-m", "enginix", *given, *ports, *words]


def environment() -> dict[str, str]:
    import enginix

    return {**os.environ, "PYTHONPATH": str(Path(enginix.__file__).parents[1])}


def test_the_command_asks_streams_and_stops(
    served_repository: Path, tritonserver: Any, serving_python: Path
) -> None:
    words = command(
        served_repository,
        tritonserver,
        serving_python,
        "--ask",
        PROMPT,
        "--max-tokens",
        "12",
        "--exit-after-ask",
    )
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(PROMPT)
    assert "curl -s http://127.0.0.1:" in done.stderr
    assert "tokens/s" in done.stderr
    assert done.stderr.rstrip().endswith("stopped")
    found = subprocess.run(
        [*words, "--json"], env=environment(), capture_output=True, text=True, timeout=600, check=False
    )
    answer = json.loads(found.stdout)["answer"]
    assert PROMPT + answer["text"] + "\n" == done.stdout
    assert answer["text"] == answer["streamed"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_stays_until_a_signal_and_exits_with_0(
    served_repository: Path, tritonserver: Any, serving_python: Path, number: signal.Signals, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(600)
        process = subprocess.Popen(
            command(served_repository, tritonserver, serving_python, "--json"),
            env={**environment(), "NOTIFY_SOCKET": str(tmp_path / "notify")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert manager.recv(100) == b"READY=1"
            assert process.stdout is not None
            described = json.loads(process.stdout.readline())
            assert generate(TritonClient("127.0.0.1", described["httpPort"]))["text_output"]
            process.send_signal(number)
            _, said = process.communicate(timeout=600)
        finally:
            process.kill()
    assert process.returncode == 0, said
    assert said.rstrip().endswith("stopped")
    # Of a stop Triton logs each model, and each second.
    assert not [line for line in said.splitlines() if "successfully unloaded" in line or "Signal (" in line]


def test_a_signal_while_it_loads_ends_it_at_once(
    served_repository: Path, tritonserver: Any, serving_python: Path
) -> None:
    process = subprocess.Popen(
        command(served_repository, tritonserver, serving_python, "--verbose"),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        while "loading" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode in (0, 5), said
    assert "Traceback" not in said


def test_a_killed_command_takes_its_server_along(
    served_repository: Path, tritonserver: Any, serving_python: Path
) -> None:
    process = subprocess.Popen(
        command(served_repository, tritonserver, serving_python, "--json"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    port = json.loads(process.stdout.readline())["httpPort"]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 300
    while TritonClient("127.0.0.1", port).ready():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_port_in_use_is_told_before_anything_starts(
    served_repository: Path, tritonserver: Any, serving_python: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = [*command(served_repository, tritonserver, serving_python), "--grpc-port", str(port)]
        done = subprocess.run(
            words, env=environment(), capture_output=True, text=True, timeout=600, check=False
        )
    assert done.returncode == 5
    assert f"error: --grpc-port: port {port} is in use by " in done.stderr


def test_dry_run_and_check_start_nothing(
    served_repository: Path, tritonserver: Any, serving_python: Path
) -> None:
    for word in ("--dry-run", "--check"):
        words = command(served_repository, tritonserver, serving_python, word, "--json")
        done = subprocess.run(
            words, env=environment(), capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found.get("ok") or found["command"][0].endswith("bin/tritonserver")


@pytest.mark.parametrize(
    ("host", "more", "url"),
    [
        ("::1", (), "[::1]"),
        ("::1", ("--no-grpc", "--no-metrics"), "[::1]"),
        ("::", (), "[::1]"),
        ("0.0.0.0", (), "127.0.0.1"),
    ],
)
def test_addresses(
    served_repository: Path,
    tritonserver: Any,
    serving_python: Path,
    host: str,
    more: tuple[str, ...],
    url: str,
) -> None:
    """serving, case c06: with ::1 gRPC said "already in use", and without it HTTP listened elsewhere."""
    words = command(served_repository, tritonserver, serving_python, "--host", host, *more)
    words += ["--ask", PROMPT, "--exit-after-ask", "--start-timeout", "120"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert f"answers at http://{url}:" in done.stderr


def test_a_stopped_executor_is_noticed(
    served_repository: Path, tritonserver: Any, serving_python: Path
) -> None:
    """security: requests hung, health said 200, and enginix serve noticed nothing."""
    process = subprocess.Popen(
        command(served_repository, tritonserver, serving_python, "--json"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = json.loads(process.stdout.readline())["httpPort"]
        (executor,) = [
            int(p.name)
            for p in Path("/proc").iterdir()
            if p.name.isdigit() and "/tensorrt_llm/" in _words(p) and _is_below(int(p.name), process.pid)
        ]
        os.kill(executor, signal.SIGSTOP)
        with pytest.raises(MachineError, match="no answer"):
            generate(TritonClient("127.0.0.1", port, timeout=180))
        _, said = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 5, said
    assert "error: tensorrt_llm: it hangs: no sign of life for 60 s" in said


def _is_below(process: int, ancestor: int) -> bool:
    from enginix.process_group import list_descendants

    return process in list_descendants(ancestor)
