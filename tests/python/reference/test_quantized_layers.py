"""Mixed precision and exclude lists; damaged scales and contradictions are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.errors import CheckpointError
from enginix.reference import Executor

TEXT = [41 * i % 157 for i in range(12)]


def test_mixed_precision_and_exclude_lists(golden: Path, tmp_path: Path) -> None:
    """One layer's feed-forward in full precision, said in both ways; it is not the same as all in FP8."""
    whole = tmp_path / "whole"
    convert_model(golden / "llama-fp8/hf", whole, ConvertOptions(dtype="float32"))
    modules = [f"transformer.layers.0.mlp.{name}" for name in ("fc", "gate", "proj")]
    tensors = load_file(whole / "rank0.safetensors")
    for module in modules:
        scale = tensors.pop(f"{module}.weights_scaling_factor")
        tensors.pop(f"{module}.activation_scaling_factor")
        tensors[f"{module}.weight"] = tensors[f"{module}.weight"].float() * scale
    config = json.loads((whole / "config.json").read_text())
    rest = {
        f"transformer.layers.{n}.{name}": {"quant_algo": "FP8"}
        for n in range(config["num_hidden_layers"])
        for name in ("attention.qkv", "attention.dense", "mlp.fc", "mlp.gate", "mlp.proj")
        if f"transformer.layers.{n}.{name}" not in modules
    }
    said = {
        "listed": {"quant_algo": "MIXED_PRECISION"},
        "excluded": {"quant_algo": "FP8", "exclude_modules": ["*lm_head", "*.0.mlp.*"]},
    }
    found = {"whole": Executor.load(whole).forward([TEXT])[0]}
    for name, quantization in said.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "rank0.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({**config, "quantization": quantization}))
        (tmp_path / name / "quant_cfg.json").write_text(json.dumps({"quantized_layers": rest}))
        found[name] = Executor.load(tmp_path / name).forward([TEXT])[0]
    assert torch.equal(found["listed"], found["excluded"])
    assert not torch.equal(found["listed"], found["whole"])
    for broken in ("[]", '{"quantized_layers": {"a": {}}}', "{", '{"quantized_layers": {"a": 1}}'):
        (tmp_path / "listed/quant_cfg.json").write_text(broken)
        with pytest.raises(CheckpointError):
            Executor.load(tmp_path / "listed")


def _changed(golden: Path, out: Path, case: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    import shutil

    shutil.copytree(golden / case, out)
    tensors = load_file(out / "rank0.safetensors")
    change(tensors)
    save_file(tensors, out / "rank0.safetensors")
    return out


LAYER = "transformer.layers.0"


@pytest.mark.parametrize(
    "case,change,says",
    [
        (
            "llama-fp8/trtllm-tp2-bfloat16",
            lambda t: t[f"{LAYER}.mlp.fc.activation_scaling_factor"].mul_(2),
            "activation scale of rank 1",
        ),
        (
            "llama-fp8/trtllm-tp1-bfloat16",
            lambda t: t[f"{LAYER}.mlp.fc.activation_scaling_factor"].zero_(),
            "not positive",
        ),
        (
            "llama-fp8/trtllm-tp1-bfloat16",
            lambda t: t[f"{LAYER}.mlp.fc.weight"].view(torch.uint8)[0, 0].fill_(0xFF),
            "holds NaN",
        ),
        (
            "llama-fp8/trtllm-tp1-bfloat16",
            lambda t: t.pop(f"{LAYER}.mlp.fc.weights_scaling_factor"),
            "weights_scaling_factor is missing",
        ),
        (
            "llama-fp8-kvfp8/trtllm-tp1-bfloat16",
            lambda t: t.pop(f"{LAYER}.attention.kv_cache_scaling_factor"),
            "kv_cache_scaling_factor is missing",
        ),
        (
            "llama-fp8-kvfp8/trtllm-tp1-bfloat16",
            lambda t: t[f"{LAYER}.attention.kv_cache_scaling_factor"].neg_(),
            "not positive",
        ),
        (
            "llama-nvfp4/trtllm-tp1-bfloat16",
            lambda t: t.pop(f"{LAYER}.mlp.fc.weights_block_scaling_factor"),
            "weights_block_scaling_factor is missing",
        ),
    ],
)
def test_damaged_scales_are_named(
    golden: Path, tmp_path: Path, case: str, change: Callable[[dict[str, torch.Tensor]], object], says: str
) -> None:
    with pytest.raises(CheckpointError, match=says):
        Executor.load(_changed(golden, tmp_path / "c", case, change))


@pytest.mark.parametrize(
    "quantization,says",
    [
        ({"quant_algo": "W4A16_GPTQ"}, "weights in W4A16_GPTQ"),
        ({"quant_algo": "FP8", "kv_cache_quant_algo": "NVFP4"}, "KV cache in NVFP4"),
        ({"quant_algo": "FP8", "exclude_modules": "lm_head"}, "exclude_modules"),
        ({"quant_algo": "FP8", "exclude_modules": [3]}, "exclude_modules"),
        ({"quant_algo": "MIXED_PRECISION"}, "quant_cfg.json"),
        ({"quant_algo": "W4A16_AWQ", "group_size": 7}, "groups of 7"),
        ({"quant_algo": None}, "weight is F8_E4M3"),
    ],
)
def test_contradictions_are_refused(
    golden: Path, tmp_path: Path, quantization: dict[str, Any], says: str
) -> None:
    out = _changed(golden, tmp_path / "c", "llama-fp8/trtllm-tp1-bfloat16", lambda t: None)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "quantization": quantization}))
    with pytest.raises(CheckpointError, match=says):
        Executor.load(out)
