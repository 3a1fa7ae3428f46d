"""What the hub's tests share."""

from __future__ import annotations

import functools
import os
import random
from pathlib import Path

REPO = "acme/tiny"
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_size": 128,
    "intermediate_size": 384,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": True,
}


@functools.lru_cache(maxsize=8)
def content(seed: int, size: int) -> bytes:
    """Bytes that no compression shrinks and every run repeats."""
    return random.Random(seed).randbytes(size)


def listing(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, with its content."""
    return {
        Path(folder, name).relative_to(directory).as_posix(): Path(folder, name).read_bytes()
        for folder, _, names in os.walk(directory)
        for name in names
    }
