"""Fixtures: an engine directory by hand, a stand-in for Triton's Python backend."""

from __future__ import annotations

import json
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from enginix.kinds.triton_repository.repository import build_triton_repository
from enginix.manifest import Manifest
from enginix.triton.models.channel import ChannelEvent
from enginix.triton.options import RepositoryOptions

RUNTIME = {"id": "trtllm-1.2.1"}
TEXT = "The quick brown fox jumps over the lazy dog. 量子力学の本、naïve café — 🙂🙃 done.\n" * 20


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen: any byte is a token, characters may need several."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


@dataclass
class Engine:
    """An engine directory, written by hand: just what a repository reads."""

    directory: Path

    def rewrite(self, **changes: Any) -> None:
        """Changes the manifest."""
        (self.directory / "enginix.json").unlink(missing_ok=True)
        described = {
            "artefact": "engine",
            "name": "tiny",
            "kind": "reference",
            "model": {"endTokens": [0, 5]},
            "runtime": {"id": "reference"},
        }
        Manifest(**{**described, **changes}).write(self.directory)


@pytest.fixture
def hand_made(tmp_path: Path) -> Engine:
    return make_engine(tmp_path / "engine")


def make_engine(directory: Path) -> Engine:
    (directory / "checkpoint").mkdir(parents=True)
    (directory / "checkpoint" / "config.json").write_text(json.dumps({"max_position_embeddings": 128}))
    (directory / "tokenizer").mkdir()
    byte_level().save(str(directory / "tokenizer" / "tokenizer.json"))
    (directory / "tokenizer" / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 5]}))
    made = Engine(directory)
    made.rewrite()
    return made


def as_tensorrt(engine: Engine) -> Path:
    """Makes it an engine directory of kind tensorrt: what a repository reads, no plan in it."""
    (engine.directory / "engine").mkdir()
    (engine.directory / "engine" / "config.json").write_text("{}")
    engine.rewrite(
        kind="tensorrt",
        runtime=RUNTIME,
        options={
            # As enginix build writes them.
            "limits": {"maxBatchSize": 16, "maxBeamWidth": 2, "maxSeqLen": 64},
            "plugins": {"usePagedContextFmha": "enable", "loraPlugin": "auto", "weightStreaming": True},
        },
    )
    return engine.directory


@dataclass(frozen=True)
class StandInOrder:
    """Stands in for the scheduler's Request."""

    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    end_ids: frozenset[int]
    temperature: float
    top_k: int
    top_p: float
    seed: int
    min_tokens: int
    repetition_penalty: float
    logprobs: bool


@dataclass(frozen=True)
class StandInEvent:
    """Stands in for the scheduler's Event."""

    id: str
    token: int | None
    logprob: float | None
    finish: str | None
    error: str | None = None


class StandInScheduler:
    """Stands in for the reference executor's scheduler: says what a test tells it to."""

    def __init__(self) -> None:
        self.orders: list[StandInOrder] = []
        self.sinks: dict[str, Callable[[StandInEvent], None]] = {}
        self.cancelled: list[str] = []
        self.refuse: Exception | None = None
        self.after_step: Callable[[], None] = lambda: None

    def add(self, order: StandInOrder, sink: Callable[[StandInEvent], None]) -> None:
        if self.refuse:
            raise self.refuse
        self.orders.append(order)
        self.sinks[order.id] = sink

    def cancel(self, number: str) -> bool:
        self.cancelled.append(number)
        return True

    def close(self) -> None:
        pass

    def say(self, *tokens: int, finish: str | None = None, order: int = -1, error: str | None = None) -> None:
        number = self.orders[order].id
        for i, token in enumerate(tokens):
            self.sinks[number](StandInEvent(number, token, -0.5, finish if i == len(tokens) - 1 else None))
            self.after_step()
        if not tokens:
            self.sinks[number](StandInEvent(number, None, None, finish, error))
            self.after_step()


class StandInChannel:
    """Stands in for the way to the executor: says what a test tells it to."""

    def __init__(self) -> None:
        self.orders: dict[str, Any] = {}
        self.clients: dict[str, str] = {}
        self.cancelled: list[str] = []
        self._events: queue.SimpleQueue[list[ChannelEvent] | None] = queue.SimpleQueue()

    def add(self, number: str, order: Any, client: str) -> None:
        json.dumps(order)
        self.orders[number], self.clients[number] = order, client

    def cancel(self, number: str) -> None:
        self.cancelled.append(number)

    def receive(self, timeout: float | None) -> list[ChannelEvent] | None:
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            return []

    def close(self) -> None:
        self._events.put(None)

    def say(self, number: str, *tokens: int, finish: str | None = None, error: str | None = None) -> None:
        for i, token in enumerate(tokens):
            last = finish if i == len(tokens) - 1 else None
            self._events.put([ChannelEvent(number, token, -0.5, last)])
        if not tokens:
            self._events.put([ChannelEvent(number, None, None, finish, error)])


def arguments(max_batch_size: int = 4, **parameters: str) -> dict[str, str]:
    """The arguments that Triton passes to initialize."""
    entries = {key: {"string_value": value} for key, value in parameters.items()}
    return {"model_config": json.dumps({"max_batch_size": max_batch_size, "parameters": entries})}


def until(condition: Callable[[], bool]) -> None:
    """Waits until it is so."""
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.005)


def closes(model: Any) -> None:
    """A model's end, which must not hang."""
    closing = threading.Thread(target=model.close)
    closing.start()
    closing.join(300)
    assert not closing.is_alive()


@pytest.fixture
def meeting_place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A TMPDIR short enough for sockets; at the end nothing may be left in it."""
    with tempfile.TemporaryDirectory(prefix="e-", dir="/tmp") as directory:
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield Path(directory)
        assert not list(Path(directory).iterdir())


class StandInBackend:
    """Stands in for triton_python_backend_utils: the names that the models use, without the transport."""

    TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1

    class TritonError(Exception):
        INTERNAL, INVALID_ARG, UNAVAILABLE, CANCELLED = range(4)

        def __init__(self, message: str, code: int = 0) -> None:
            super().__init__(message)
            self.code = code

    class Tensor:
        def __init__(self, name: str, value: np.ndarray[Any, Any]) -> None:
            self._name, self.value = name, value

        def name(self) -> str:
            return self._name

        def as_numpy(self) -> np.ndarray[Any, Any]:
            return self.value

    class InferenceResponse:
        def __init__(self, tensors: Any = (), error: Any = None) -> None:
            self.tensors = {t.name(): t.value for t in tensors}
            self.error = error


@dataclass
class StandInSender:
    responses: list[Any] = field(default_factory=list)
    flags: list[int] = field(default_factory=list)
    cancelled: bool = False
    broken: bool = False
    closed: bool = False

    def send(self, response: Any = None, flags: int = 0) -> None:
        # As response_sender.cc of the Python backend: closed by the last response, before it is on its way.
        if self.closed:
            raise RuntimeError("Response sender has been closed.")
        self.closed = bool(flags)
        if self.broken and response is not None and response.error is None:
            raise RuntimeError("shared memory is full")
        self.responses.append(response)
        self.flags.append(flags)

    def is_cancelled(self) -> bool:
        return self.cancelled


@dataclass
class StandInRequest:
    given: dict[str, np.ndarray[Any, Any]]
    identity: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    cancelled: bool = False
    sender: StandInSender = field(default_factory=StandInSender)

    def inputs(self) -> list[Any]:
        return [StandInBackend.Tensor(name, value) for name, value in self.given.items()]

    def parameters(self) -> str:
        return json.dumps(self.extra)

    def request_id(self) -> str:
        return self.identity

    def is_cancelled(self) -> bool:
        return self.cancelled

    def get_response_sender(self) -> StandInSender:
        return self.sender


@pytest.fixture
def backend() -> StandInBackend:
    return StandInBackend()


@pytest.fixture
def request_of() -> Callable[..., StandInRequest]:
    """Makes a request of Python values: each becomes a row of a batch of one."""

    def make(identity: str = "", extra: dict[str, Any] | None = None, **inputs: Any) -> StandInRequest:
        rows = {}
        for name, value in inputs.items():
            array = value if isinstance(value, np.ndarray) else np.array([value])
            if array.dtype.kind in "US":
                encoded = [s.encode() if isinstance(s, str) else s for s in array.reshape(-1).tolist()]
                array = np.array(encoded, np.object_)
            rows[name] = array.reshape(1, -1) if array.ndim < 2 else array
        return StandInRequest(rows, identity, extra or {})

    return make


def made_repository(engine: Any, kind: str, out: Path) -> Path:
    """A repository of this kind."""
    directory = as_tensorrt(engine) if kind == "tensorrt" else engine.directory
    build_triton_repository(directory, out, RepositoryOptions(max_batch_size=4))
    return out


@pytest.fixture
def repository(hand_made: Any, tmp_path: Path) -> Path:
    return made_repository(hand_made, "reference", tmp_path / "repository")


@pytest.fixture
def with_ensemble(hand_made: Any, tmp_path: Path) -> Path:
    """A repository with one of Triton's own ensembles, which the reference kind does not have."""
    return made_repository(hand_made, "tensorrt", tmp_path / "repository")
