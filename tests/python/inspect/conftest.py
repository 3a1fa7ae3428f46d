"""A hub on loopback, and models made of headers and holes."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hub import Fault, Hub, Repository

TINY = Path(__file__).parents[2] / "models" / "tiny-qwen3"
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 1000, "hidden_size": 256,
    "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 512,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16", "hidden_act": "silu",
    "tie_word_embeddings": False, "rope_theta": 10000.0,
}  # fmt: skip


def write_sparse(path: Path, tensors: dict[str, tuple[str, list[int], int]]) -> None:
    """A safetensors file with a real header and a hole in place of data: name → dtype, shape, bytes."""
    header, at = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + at)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A model of four shards, 200 MB of holes, with the parameters of no real one."""
    directory = tmp_path / "sharded"
    directory.mkdir()
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
