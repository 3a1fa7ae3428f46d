"""Quantized key-value caches, judged by transformers with keys and values that NumPy has rounded.

transformers hands every key and value, rotated, to its cache and attends to what the cache gives back: a
cache that rounds is a model with a quantized cache, whatever the architecture.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.evaluation.judgement.logits import relative_error
from enginix.reference import Executor

# One golden model an architecture.
CASES = (
    "llama-bf16",
    "mistral-bf16",
    "mixtral-bf16",
    "qwen2-bf16",
    "qwen2moe-bf16",
    "qwen3-bf16",
    "qwen3moe-bf16",
    "phi3-bf16",
)
KV_FORMATS = ("INT8", "FP8")
IDS = [(13 * i + 5) % 150 for i in range(30)]
ORDER = 1e-5  # sums in another order


def _rounded(x: np.ndarray[Any, Any], scale: float, name: str) -> np.ndarray[Any, Any]:
    """By the formats' definitions, in NumPy alone."""
    if name == "INT8":
        return np.clip(np.rint(x / np.float32(scale)), -128, 127) * np.float32(scale)
    narrow = np.clip(x / np.float32(scale), -448, 448).astype(ml_dtypes.float8_e4m3fn)
    return narrow.astype(np.float32) * np.float32(scale)


def _cache(scales: list[float], name: str | None, seen: list[float]) -> Any:
    """A cache that rounds what it is given, and notes the largest of it."""
    from transformers import DynamicCache

    class Rounding(DynamicCache):
        def update(self, keys: Any, values: Any, layer: int, *more: Any, **named: Any) -> Any:
            seen[layer] = max(seen[layer], float(keys.abs().max()), float(values.abs().max()))
            if name is not None:
                keys, values = (
                    torch.from_numpy(_rounded(x.numpy(), scales[layer], name)) for x in (keys, values)
                )
            return super().update(keys, values, layer, *more, **named)

    return Rounding()


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("name", KV_FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_equals_transformers_with_a_rounding_cache(
    golden: Path, tmp_path: Path, hugging_face: Callable[..., Any], case: str, name: str, ranks: int
) -> None:
    model = golden / case / "hf"
    convert_model(
        model,
        tmp_path / "out",
        ConvertOptions(dtype="float32", kv_cache="FP8", mapping=CheckpointMapping(ranks)),
    )
    reference, ids = hugging_face(model), torch.tensor([IDS])
    layers = reference.config.num_hidden_layers
    seen = [0.0] * layers
    with torch.no_grad():
        exact = reference(ids, past_key_values=_cache([], None, seen)).logits[0]
        scales = [most / (127 if name == "INT8" else 448) for most in seen]
        expected = reference(ids, past_key_values=_cache(scales, name, seen)).logits[0]
    config = json.loads((tmp_path / "out/config.json").read_text())
    config["quantization"]["kv_cache_quant_algo"] = name
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    for path in (tmp_path / "out").glob("rank*.safetensors"):
        tensors = load_file(path)
        for layer, scale in enumerate(scales):
            at = f"transformer.layers.{layer}.attention.kv_cache"
            tensors[f"{at}_scaling_factor"].fill_(scale)
            tensors[f"{at}_rcp_scaling_factor"].fill_(1 / scale)
        save_file(tensors, path)
    executor = Executor.load(tmp_path / "out", dtype="float32")
    (found,) = executor.forward([IDS])
    error, change = relative_error(found, expected), float(relative_error(expected, exact).median())
    assert change > 10 * ORDER, "the cache changed nothing: this compares nothing"
    assert float(error.median()) <= ORDER and float(error.max()) < max(change, 10 * ORDER)
    # Token by token, from the cache itself.
    cache = executor.new_cache(1)
    executor.prefill(cache, 0, IDS[:20])
    stepped = torch.stack([executor.decode(cache, {0: token})[0] for token in IDS[20:]])
    assert float(relative_error(stepped, expected[20:]).median()) <= ORDER
