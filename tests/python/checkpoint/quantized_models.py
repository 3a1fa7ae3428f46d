"""ModelOpt's unified layout, imitated: a random model with random codes and scales, layer by layer.

For layouts that the golden archive has no case of; what ModelOpt itself writes is in test_modelopt.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import random_models

from enginix.checkpoint.compare_with_model import CheckpointComparison
from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.verify import verify_checkpoint

Tensors = dict[str, Any]


def _scale(rng: np.random.Generator, *shape: int) -> Any:
    return rng.uniform(0.5, 2.0, shape).astype(np.float32)


def fp8(rng: np.random.Generator, out: int, inp: int) -> Tensors:
    codes = rng.integers(0, 0x7F, (out, inp), np.uint8).view(ml_dtypes.float8_e4m3fn)
    return {"weight": codes, "weight_scale": _scale(rng), "input_scale": _scale(rng)}


def nvfp4(rng: np.random.Generator, out: int, inp: int) -> Tensors:
    """Global scales are 0.5 for all, as ModelOpt shares them between merged matrices."""
    blocks = rng.integers(1, 0x7F, (out, inp // 16), np.uint8).view(ml_dtypes.float8_e4m3fn)
    return {
        "weight": rng.integers(0, 256, (out, inp // 2), np.uint8),
        "weight_scale": blocks,
        "weight_scale_2": np.float32(0.5).reshape(()),
        "input_scale": _scale(rng),
    }


def awq(rng: np.random.Generator, out: int, inp: int) -> Tensors:
    return {
        "weight": rng.integers(0, 256, (out // 2, inp), np.uint8),
        "weight_scale": _scale(rng, out, inp // 128),
    }


def sq(rng: np.random.Generator, out: int, inp: int) -> Tensors:
    return {
        "weight": rng.integers(-128, 128, (out, inp), np.int64).astype(np.int8),
        "weight_scale": _scale(rng, out),
        "input_scale": _scale(rng),
        "pre_quant_scale": np.ones(inp, ml_dtypes.bfloat16),
    }


MAKERS: dict[str, Callable[[np.random.Generator, int, int], Tensors]] = {
    "FP8": fp8,
    "NVFP4": nvfp4,
    "W4A16_AWQ": awq,
    "W8A8_SQ_PER_CHANNEL": sq,
}


def write(
    directory: Path,
    config: dict[str, Any],
    algorithm_of: Callable[[str], str | None],
    quantization: dict[str, Any],
) -> Tensors:
    """A model whose matrices have the algorithms that ``algorithm_of(module)`` says; its tensors."""
    rng, tensors = np.random.default_rng(4), {}
    for name, array in random_models.write(directory, config).items():
        module = name.removesuffix(".weight")
        algorithm = algorithm_of(module) if array.ndim == 2 else None
        if algorithm is None:
            tensors[name] = array
        else:
            for leaf, value in MAKERS[algorithm](rng, *array.shape).items():
                tensors[f"{module}.{leaf}"] = np.asarray(value)
    (directory / "model.safetensors").write_bytes(random_models.safetensors_bytes(tensors))
    (directory / "hf_quant_config.json").write_text(json.dumps({"quantization": quantization}))
    return tensors


SIZES: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_attention_heads": 8,
    "num_key_value_heads": 2,
}  # fmt: skip


# Smaller, for formats without AWQ's groups of 128 and NVFP4's tiles of 128 rows.
SMALL: dict[str, Any] = {**SIZES, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def llama(**changes: Any) -> dict[str, Any]:
    return random_models.config("LlamaForCausalLM", **(SIZES | changes))


def linear(module: str) -> bool:
    return module.endswith("_proj")


def check(model: Path, out: Path, options: ConvertOptions) -> dict[str, Any]:
    """Converts, verifies and compares; the checkpoint's config.json."""
    convert_model(model, out, options)
    assert verify_checkpoint(out).findings == []
    assert list(CheckpointComparison(out, model).findings()) == []
    config: dict[str, Any] = json.loads((out / "config.json").read_text())
    return config
