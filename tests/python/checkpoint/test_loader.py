"""A checkpoint is read as TensorRT-LLM's loader reads it: what an engine would compute is what is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_models
from safetensors.numpy import load_file

import golden
from enginix.checkpoint.compare_with_model import CheckpointComparison
from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.verify import verify_checkpoint

YARN = {"rope_type": "yarn", "factor": 4.0}


def converted(directory: Path, **keys: Any) -> tuple[Path, Path]:
    model, out = directory / "model", directory / "out"
    random_models.write(model, random_models.config("LlamaForCausalLM", **keys))
    convert_model(model, out, ConvertOptions())
    return model, out


def findings(model: Path, out: Path, **changes: Any) -> list[str]:
    path = out / "config.json"
    raw = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in raw.items() if v != "absent"}))
    return [str(f) for f in [*verify_checkpoint(out).findings, *CheckpointComparison(out, model).findings()]]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, None),
        # The loader's default of an absent key is not the model's.
        ({"rotary_scaling": YARN}, "4096"),
        ({"rotary_scaling": {**YARN, "original_max_position_embeddings": 64}}, None),
        ({"rotary_scaling": {**YARN, "original_max_position_embeddings": 64, "type": "linear"}}, "linear"),
        ({"rotary_scaling": {**YARN, "original_max_position_embeddings": 64, "mscale": 0.7}}, "0.7"),
        (
            {"rotary_scaling": {**YARN, "original_max_position_embeddings": 64, "attention_factor": 0.7}},
            "attention_factor: is not read",
        ),
        ({"rotary_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "alpha: is missing"),
        ({"rotary_scaling": {"rope_type": "longrope"}}, "no table"),
        ({"norm_epsilon": "absent"}, "norm_epsilon"),
        ({"rotary_base": 500000.0}, "rotary_base"),
        ({"hidden_act": "absent"}, "gelu"),
        ({"position_embedding_type": "absent"}, "learned_absolute"),
        ({"rotary_embedding_dim": 4}, "rotary_embedding_dim"),
    ],
)
def test_findings(changes: dict[str, Any], says: str | None, tmp_path: Path) -> None:
    found = findings(*converted(tmp_path, rope_scaling=YARN), **changes)
    assert (found == []) if says is None else (found and says in " ".join(found)), found


def test_the_experts_normalization_is_compared(tmp_path: Path) -> None:
    keys = random_models.config("Qwen3MoeForCausalLM", norm_topk_prob=True, model_type="qwen3_moe")
    random_models.write(tmp_path / "model", keys)
    convert_model(tmp_path / "model", tmp_path / "out", ConvertOptions())
    assert findings(tmp_path / "model", tmp_path / "out") == []
    moe = json.loads((tmp_path / "out/config.json").read_text())["moe"]
    said = findings(tmp_path / "model", tmp_path / "out", moe={**moe, "normalization_mode": 0})
    assert len(said) == 1 and "moe" in said[0]


@pytest.mark.parametrize(
    "name",
    ["llama-rope-linear", "llama-rope-llama3", "qwen2-rope-yarn", "qwen3-rope-yarn", "phi3-longrope-128k"],
)
def test_the_executors_tables_are_nvidias(name: str) -> None:
    """TensorRT-LLM's own conversion code stored the tables that its attention reads."""
    torch = pytest.importorskip("torch")
    from enginix.reference import config as checkpoint_config
    from enginix.reference.rope import RopeTables

    checkpoint = next(p for p in sorted((golden.root() / name).glob("trtllm-tp1-*")))
    stored = load_file(checkpoint / "rank0.safetensors")
    config = checkpoint_config.read_executor_config(checkpoint)
    rope = RopeTables(config, torch.device("cpu"))
    long = config.max_position_embeddings
    for prefix, length in (("", 1), ("long_rope_", long)) if "longrope" in name else (("", long),):
        inverse, magnitude = rope.frequencies(length)
        assert np.allclose(inverse.numpy(), stored[f"{prefix}rotary_inv_freq"].reshape(-1), rtol=1e-6)
        if name == "phi3-longrope-128k":
            continue  # its tables of 131072 positions are not in the archive
        table = stored[f"{prefix}embed_positions_for_gpt_attention"].reshape(long, -1, 2)
        first = np.arange(64)[:, None] * inverse.numpy()
        assert np.allclose(table[:64, :, 0], np.cos(first) * magnitude, atol=2e-6)
