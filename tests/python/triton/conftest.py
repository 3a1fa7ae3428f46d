"""Fixtures: an engine directory by hand, a stand-in for Triton's Python backend."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from enginix.manifest import Manifest

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
            "runtime": {"id": "reference"},
        }
        Manifest(**{**described, **changes}).write(self.directory)


@pytest.fixture
def hand_made(tmp_path: Path) -> Engine:
    directory = tmp_path / "engine"
    (directory / "checkpoint").mkdir(parents=True)
    (directory / "checkpoint" / "config.json").write_text(json.dumps({"max_position_embeddings": 128}))
    (directory / "tokenizer").mkdir()
    byte_level().save(str(directory / "tokenizer" / "tokenizer.json"))
    (directory / "tokenizer" / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 5]}))
    made = Engine(directory)
    made.rewrite()
    return made


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

    class InferenceRequest:
        """One that a model makes itself; remembers all of them."""

        made: list[dict[str, Any]] = []  # noqa: RUF012

        def __init__(self, **arguments: Any) -> None:
            self.made.append(arguments)

        def exec(self, decoupled: bool) -> list[Any]:
            assert decoupled
            return []


@dataclass
class StandInSender:
    responses: list[Any] = field(default_factory=list)
    flags: list[int] = field(default_factory=list)
    cancelled: bool = False
    broken: bool = False

    def send(self, response: Any = None, flags: int = 0) -> None:
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
    StandInBackend.InferenceRequest.made.clear()
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
