"""An engine of kind rtx behind the real tritonserver; the interpreter executes its network."""

from __future__ import annotations

import concurrent.futures
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import environments
from enginix import manifest
from enginix.errors import MachineError
from enginix.ports import reserve_ports
from enginix.serve.client import TritonClient
from enginix.serve.launch import Endpoints, LaunchSpec
from enginix.serve.readiness import await_ready
from enginix.serve.supervisor import SupervisedServer
from enginix.serve.tritonserver import TritonServer

pytestmark = pytest.mark.slow
PROMPT = "This License applies to any"
MODEL = Path(__file__).parents[2] / "models" / "tiny-qwen3"
PACKAGE = Path(manifest.__file__).parents[1]


@pytest.fixture(scope="session")
def rtx_python() -> Path:
    try:
        return environments.environment("rtx") / "bin/python3"
    except environments.MissingEnvironment as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def run_enginix(rtx_python: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command of enginix in the environment that has TensorRT for RTX."""

    def run(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(rtx_python), "-m", "enginix", *map(str, words)],
            env={**os.environ, "PYTHONPATH": str(PACKAGE)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def rtx_checkpoint(made_once: Callable[..., Path], run_enginix: Any) -> Path:
    return made_once("rtx-served-checkpoint", lambda out: run_enginix("convert", MODEL, "-o", out))


@pytest.fixture(scope="session")
def rtx_engine(made_once: Callable[..., Path], run_enginix: Any, rtx_checkpoint: Path) -> Path:
    return made_once(
        "rtx-served-engine", lambda out: run_enginix("rtx-build", rtx_checkpoint, "--model", MODEL, "-o", out)
    )


@pytest.fixture(scope="session")
def rtx_repository(
    made_once: Callable[..., Path], run_enginix: Any, rtx_engine: Path, rtx_checkpoint: Path
) -> Path:
    def make(out: Path) -> None:
        run_enginix("triton-repo", rtx_engine, "-o", out, "--interpreter", rtx_checkpoint)

    return made_once("rtx-interpreted-repository", make)


@pytest.fixture(scope="session")
def serve_rtx(tritonserver: TritonServer, rtx_python: Path) -> Callable[[Path], Any]:
    @contextmanager
    def start(repository: Path) -> Iterator[Any]:
        ports = reserve_ports("127.0.0.1", [("http", 0), ("grpc", 0), ("metrics", 0)])
        endpoints = Endpoints("127.0.0.1", *ports)
        spec = LaunchSpec(tritonserver, repository, rtx_python, endpoints, exit_timeout=10)
        log: list[str] = []
        with SupervisedServer(spec, log.append) as server:
            client = TritonClient("127.0.0.1", ports[0])
            await_ready(server, client, None, 180, "rtx")
            yield SimpleNamespace(server=server, client=client, log=log)

    return start


@pytest.fixture(scope="module")
def rtx(serve_rtx: Any, rtx_repository: Path) -> Iterator[Any]:
    with ExitStack() as stack:
        yield stack.enter_context(serve_rtx(rtx_repository))


def ask(client: TritonClient, prompt: str = PROMPT, **more: Any) -> dict[str, Any]:
    return client.generate("ensemble", {"text_input": prompt, "max_tokens": 16, "end_id": -1, **more})


def stream(client: TritonClient, prompt: str = PROMPT, **more: Any) -> list[dict[str, Any]]:
    body = {"text_input": prompt, "max_tokens": 16, "end_id": -1, "stream": True, **more}
    return list(client.stream("ensemble", body))


def test_64_requests_over_8_slots_have_the_answers_of_kind_reference(rtx: Any, running: Any) -> None:
    """Greedy, sampled, with stop words and log-probabilities; prompts of one to some hundred tokens."""
    words = (Path(__file__).parents[3] / "LICENSE").read_text().split()
    rules: list[dict[str, Any]] = [
        {},
        {"temperature": 0.8, "top_k": 20, "return_log_probs": True},
        {"temperature": 1.2, "top_p": 0.9, "repetition_penalty": 1.2},
        {"stop_words": [" the", " of"], "min_tokens": 2},
    ]
    requests = [
        (" ".join(words[number : number + 1 + number * 3]), {**rules[number % 4], "seed": number})
        for number in range(64)
    ]
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        ours = list(pool.map(lambda one: ask(rtx.client, one[0], **one[1]), requests))
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        theirs = list(pool.map(lambda one: ask(running.client, one[0], **one[1]), requests))
    for request, a, b in zip(requests, ours, theirs, strict=True):
        assert a["text_output"] == b["text_output"], request
        assert a["finish_reason"] == b["finish_reason"], request
        if "return_log_probs" in request[1]:
            assert a["output_log_probs"] == pytest.approx(b["output_log_probs"], abs=1e-3)
    assert {answer["finish_reason"] for answer in ours} == {"stop", "length"}


def test_streams_say_what_one_answer_says(rtx: Any) -> None:
    whole, chunks = ask(rtx.client), stream(rtx.client)
    assert "".join(chunk["text_output"] for chunk in chunks) == whole["text_output"] != ""
    assert len(chunks) > 8
    messages = json.dumps([{"role": "user", "content": "Who may copy it?"}])
    answer = rtx.client.generate("ensemble", {"messages": messages, "max_tokens": 4, "end_id": -1})
    assert answer["text_output"]


def test_a_client_that_vanishes_frees_its_slot(
    serve_rtx: Any, run_enginix: Any, rtx_engine: Path, rtx_checkpoint: Path, tmp_path: Path
) -> None:
    words = ["--interpreter", rtx_checkpoint, "--max-batch-size", 1]
    run_enginix("triton-repo", rtx_engine, "-o", tmp_path / "repository", *words)
    with serve_rtx(tmp_path / "repository") as one:
        body = {"text_input": PROMPT, "max_tokens": 2000, "end_id": -1, "stream": True}
        pieces = one.client.stream("ensemble", body)
        next(pieces)
        pieces.close()
        # One request runs at a time: this one waits until the vanished one is noticed.
        assert ask(one.client, max_tokens=1)["finish_reason"] == "length"
        assert one.server.stop() == 0


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"max_tokens": 0}, "max_tokens: 0 is not at least 1"),
        ({"max_tokens": 5000}, "above this server's limit of 2047"),
        ({"text_input": "word " * 6000}, "the engine holds 2048, prompt and answer together"),
        ({"beam_width": 4}, "beam_width: 4 is not supported"),
        ({"bad_words": ["b"]}, "cannot ban words"),
    ],
)
def test_limits(rtx: Any, body: dict[str, Any], expected: str) -> None:
    with pytest.raises(MachineError) as caught:
        rtx.client.generate("ensemble", {"text_input": "a", "max_tokens": 4, **body})
    assert expected in str(caught.value)


def test_the_command_serves_and_names_the_interpreter(
    run_enginix: Any, rtx_repository: Path, tritonserver: TritonServer
) -> None:
    words = ["serve", rtx_repository, "--tritonserver", tritonserver.directory]
    for port in ("http", "grpc", "metrics"):
        words += [f"--{port}-port", 0]
    done = run_enginix(*words, "--ask", PROMPT, "--exit-after-ask")
    assert "enginix's interpreter executes the network" in done.stderr
    assert "NVIDIA's runtime and the plan take no part" in done.stderr
    assert done.stdout.strip()


def test_an_engine_for_nvidia_s_runtime_is_refused_here(
    run_enginix: Any, rtx_engine: Path, tritonserver: TritonServer, tmp_path: Path
) -> None:
    """The PyTorch of the tests has no CUDA."""
    run_enginix("triton-repo", rtx_engine, "-o", tmp_path / "repository")
    words = ["serve", tmp_path / "repository", "--tritonserver", tritonserver.directory]
    done = run_enginix(*words, "--http-port", 0, "--grpc-port", 0, "--metrics-port", 0, check=False)
    assert done.returncode != 0
    assert "has no CUDA" in done.stderr
    assert "docs/how-to/environments.md" in done.stderr


def test_the_gates_ask_the_engine_and_print_what_to_report(
    run_enginix: Any, rtx_engine: Path, rtx_checkpoint: Path, tmp_path: Path
) -> None:
    gates = ("files", "smoke", "greedy", "task")
    words = ["--gates", json.dumps({gate: {} for gate in gates}), "-o", tmp_path / "evidence"]
    done = run_enginix("gate", rtx_engine, "--reference", MODEL, "--interpreter", rtx_checkpoint, *words)
    for gate in gates:
        assert f"gate {gate}: passed" in done.stderr, done.stderr
    assert "this says nothing of NVIDIA's runtime" in done.stderr
    assert "gates: all gates passed" in done.stderr and "first step: " in done.stderr
    evidence = json.loads((tmp_path / "evidence/gates.json").read_text())
    assert evidence["runtime"]["executor"].startswith("enginix's interpreter")
