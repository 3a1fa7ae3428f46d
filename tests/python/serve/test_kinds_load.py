"""The real tritonserver on repositories of every kind, with auto-completion on and off, decoupled on and off.

TensorRT-LLM is not here: its backend and NVIDIA's Python models are replaced by a stand-in
(standin_model.py), their configurations by nothing: only ``backend: "tensorrtllm"`` becomes ``"python"``.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from enginix.kinds.tensorrt.tensorrt_models import NvidiaModelOptions
from enginix.kinds.triton_repository.repository import build_triton_repository
from enginix.manifest import Manifest
from enginix.ports import reserve_ports
from enginix.serve.client import TritonClient
from enginix.serve.launch import Endpoints, LaunchSpec
from enginix.triton.options import RepositoryOptions

STAND_IN = Path(__file__).with_name("standin_model.py")
pytestmark = pytest.mark.slow


def repository(
    kind: str, engine: Path, tmp_path: Path, decoupled: bool, stand_in: Path = STAND_IN, chat: bool = True
) -> Path:
    """The real repository of an engine directory of that shape, with stand-ins for its code."""
    directory = tmp_path / "engine"
    (directory / "engine").mkdir(parents=True)
    (directory / "engine" / "config.json").write_text("{}")
    (directory / "model").mkdir()
    (directory / "llm_args.yaml").write_text("{}")
    shutil.copytree(engine / "tokenizer", directory / "tokenizer")
    Manifest(artefact="engine", name="m", kind=kind, runtime={"id": "trtllm-1.2.1"}).write(directory)
    out = tmp_path / "repository"
    options = RepositoryOptions(max_batch_size=4) if kind == "tensorrt" else RepositoryOptions()
    build_triton_repository(
        directory, out, options, models=NvidiaModelOptions(decoupled=decoupled, chat=chat)
    )
    for model in (p for p in out.iterdir() if p.is_dir() and p.name != "ensemble"):
        config = model / "config.pbtxt"
        config.write_text(config.read_text().replace('backend: "tensorrtllm"', 'backend: "python"'))
        for path in (model / "1").iterdir():
            path.unlink() if path.is_symlink() else None
        # Where enginix's own model.py stands around NVIDIA's, it stays.
        own = (model / "1" / "model.py").is_file()
        shutil.copy(stand_in, model / "1" / ("nvidia_model.py" if own else "model.py"))
    return out


@contextmanager
def started(
    server: Any, python: Path, directory: Path, state: Path, auto_complete: bool
) -> Iterator[tuple[TritonClient, Path]]:
    ports = reserve_ports("127.0.0.1", [("http", 0), ("grpc", 0), ("metrics", 0)])
    plan = LaunchSpec(server, directory, python, Endpoints("127.0.0.1", *ports), exit_timeout=30)
    words = [
        w
        for w in plan.command("enginix-test-", directory)
        if not (auto_complete and w == "--disable-auto-complete-config")
    ]
    log = state / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(words, env=plan.environment(state), stdout=sink, stderr=sink)
        client = TritonClient("127.0.0.1", ports[0])
        try:
            deadline = time.monotonic() + 300
            while not client.ready():
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.1)
            yield client, log
            process.terminate()
            assert process.wait(300) == 0
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("auto_complete", [False, True], ids=["complete-off", "complete-on"])
@pytest.mark.parametrize("decoupled", [True, False], ids=["decoupled", "one-response"])
def test_a_tensorrt_repository_loads_and_routes(
    tritonserver: Any,
    serving_python: Path,
    served_engine: Path,
    tmp_path: Path,
    decoupled: bool,
    auto_complete: bool,
) -> None:
    directory = repository("tensorrt", served_engine, tmp_path, decoupled)
    with started(tritonserver, serving_python, directory, tmp_path, auto_complete) as (client, _):
        body = {"text_input": "x", "max_tokens": 4, "temperature": 0.5, "stop_words": ["a"]}
        for model in ("ensemble", "tensorrt_llm_bls"):
            assert client.generate(model, body)["text_output"] == "stand-in"
        if decoupled:
            pieces = list(client.stream("ensemble", {**body, "stream": True}))
            assert [p["text_output"] for p in pieces] == ["stand-in"]


@pytest.mark.parametrize("auto_complete", [False, True], ids=["complete-off", "complete-on"])
@pytest.mark.parametrize("decoupled", [True, False], ids=["decoupled", "one-response"])
def test_an_llmapi_repository_loads_and_answers(
    tritonserver: Any,
    serving_python: Path,
    served_engine: Path,
    tmp_path: Path,
    decoupled: bool,
    auto_complete: bool,
) -> None:
    directory = repository("llmapi", served_engine, tmp_path, decoupled)
    with started(tritonserver, serving_python, directory, tmp_path, auto_complete) as (client, _):
        found = client.generate("tensorrt_llm", {"text_input": "x", "sampling_param_max_tokens": 4})
        assert found["text_output"] == "stand-in"


def test_the_reference_repository_loads_with_auto_completion(
    tritonserver: Any, serving_python: Path, served_repository: Path, tmp_path: Path
) -> None:
    # Triton's stub writes compiled models beside their sources.
    directory = shutil.copytree(served_repository, tmp_path / "repository", symlinks=True)
    with started(tritonserver, serving_python, directory, tmp_path, True) as (client, _):
        body = {"text_input": "The", "max_tokens": 4, "end_id": -1}
        whole = client.generate("ensemble", body)["text_output"]
        pieces = list(client.stream("ensemble", {**body, "stream": True}))
        assert "".join(p["text_output"] for p in pieces) == whole
