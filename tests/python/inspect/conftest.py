"""A hub on loopback, and models made of headers and holes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sparse_models import CONFIG, write_sparse

from hub import Fault, Hub, Repository

TINY = Path(__file__).parents[2] / "models" / "tiny-qwen3"


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four shards, 200 MB of holes, with the parameters of no real one. Tests only read it."""
    directory = tmp_path_factory.mktemp("sharded")
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "tokenizer.json").write_text("{}")
    (directory / "LICENSE").write_text("…")
    (directory / "README.md").write_text("---\nlicense: mit\n---\n")
    index = {}
    for shard in range(1, 5):
        file = f"model-0000{shard}-of-00004.safetensors"
        names = {f"t{shard}.{n}.weight": ("BF16", [1000, 250], 500_000) for n in range(100)}
        write_sparse(directory / file, names)
        index.update(dict.fromkeys(names, file))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return directory


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Hub]]:
    """Starts a hub with ``own/model`` and points HF_ENDPOINT at it."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with ExitStack() as stack:

        def run(directory: Path | Repository, *faults: str, **options: Any) -> Hub:
            made = Hub(
                {"own/model": directory},
                faults=[Fault.parse(f) for f in faults],
                **options,
            )
            hub = stack.enter_context(made)
            monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
            return hub

        yield run
