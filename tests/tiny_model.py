"""Fixtures: the tiny trained model, converted once a session; for the conftest of whoever judges it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from enginix.checkpoint.convert import Options, convert
from enginix.checkpoint.mapping import Mapping


@pytest.fixture(scope="session")
def model() -> Path:
    return Path(__file__).parent / "models/tiny-qwen3"


@pytest.fixture(scope="session")
def checkpoint(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tensor-parallel ranks, so that cuts are among what is judged."""
    out = tmp_path_factory.mktemp("checkpoint") / "tiny"
    convert(model, out, Options(mapping=Mapping(2, 1, 1)))
    return out


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices are faster on one thread, and the machine may be busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
