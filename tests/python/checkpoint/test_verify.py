"""Verification sees what is wrong with a checkpoint, and comparison what is wrong with its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import quantized_models
import random_models
from quantized_models import linear, llama

from enginix.checkpoint.compare_with_model import CheckpointComparison
from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.mapped_tensors import RankFile
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.checkpoint.verify import verify_checkpoint


def test_verifier_sees_every_kind_of_damage(tmp_path: Path) -> None:
    """Each damage is found; an undamaged copy is not."""
    quantization = {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}
    quantized_models.write(tmp_path / "m", llama(), lambda m: "NVFP4" if linear(m) else None, quantization)
    convert_model(tmp_path / "m", tmp_path / "good", ConvertOptions(mapping=CheckpointMapping(2)))
    path = tmp_path / "good/rank1.safetensors"
    good = {n: RankFile(path)[n].copy() for n in RankFile(path).tensors}
    layer = "transformer.layers.0"

    def damaged(change: Any) -> list[str]:
        tensors = {n: a.copy() for n, a in good.items()}
        change(tensors)
        path.write_bytes(random_models.safetensors_bytes(tensors))
        return [str(f) for f in verify_checkpoint(tmp_path / "good").findings]

    def put(name: str, value: Any, at: Any = ...) -> Any:
        def change(tensors: dict[str, Any]) -> None:
            tensors[name][at] = value

        return change

    assert damaged(lambda t: None) == []
    assert "missing" in damaged(lambda t: t.pop(f"{layer}.mlp.fc.alpha"))[0]
    assert "not required" in damaged(lambda t: t.update(stray=np.zeros(1, np.float32)))[0]
    assert "should be" in damaged(lambda t: t.update({f"{layer}.mlp.fc.alpha": np.ones(2, np.float32)}))[0]
    assert "NaN" in damaged(put(f"{layer}.input_layernorm.weight", np.nan, 3))[0]
    assert "not positive" in damaged(put(f"{layer}.mlp.fc.activation_global_scaling_factor", -1))[0]
    assert "product" in damaged(put(f"{layer}.mlp.fc.alpha", 7.0))[0]
    assert "tiled" in damaged(put(f"{layer}.mlp.fc.weights_block_scaling_factor", 1.0))[0]
    assert "differs from rank0" in damaged(put("transformer.ln_f.weight", 9.0, 0))[0]
    path.write_bytes(path.read_bytes()[:-3])
    assert "rank1.safetensors" in str(verify_checkpoint(tmp_path / "good").findings[0])
    path.unlink()
    assert verify_checkpoint(tmp_path / "good").findings


def test_comparison_sees_wrong_weights(tmp_path: Path) -> None:
    quantization = {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    quantized_models.write(tmp_path / "m", llama(), lambda m: "FP8" if linear(m) else None, quantization)
    convert_model(tmp_path / "m", tmp_path / "out", ConvertOptions())
    path = tmp_path / "out/rank0.safetensors"
    for name, change in (
        ("transformer.layers.1.mlp.proj.weights_scaling_factor", lambda a: a * 1.5),
        ("transformer.layers.0.attention.qkv.weight", lambda a: a[::-1]),
        ("transformer.vocab_embedding.weight", lambda a: a * 2),
        ("transformer.layers.0.post_layernorm.weight", lambda a: a + 1),
    ):
        tensors = {n: RankFile(path)[n].copy() for n in RankFile(path).tensors}
        whole = path.read_bytes()
        tensors[name] = np.ascontiguousarray(change(tensors[name])).astype(tensors[name].dtype)
        path.write_bytes(random_models.safetensors_bytes(tensors))
        assert verify_checkpoint(tmp_path / "out").findings == []
        findings = [str(f) for f in CheckpointComparison(tmp_path / "out", tmp_path / "m").findings()]
        assert len(findings) == 1 and name.rsplit(".", 1)[0] in findings[0]
        path.write_bytes(whole)


def test_verify_refuses_unprotected_heads_and_useless_excludes(tmp_path: Path) -> None:
    quantization = {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    quantized_models.write(tmp_path / "m", llama(), lambda m: "FP8" if linear(m) else None, quantization)
    convert_model(tmp_path / "m", tmp_path / "out", ConvertOptions())
    raw = json.loads((tmp_path / "out/config.json").read_text())
    raw["quantization"]["exclude_modules"] = ["model.layers.0.mlp.gate"]
    (tmp_path / "out/config.json").write_text(json.dumps(raw))
    findings = "\n".join(map(str, verify_checkpoint(tmp_path / "out").findings))
    assert "lm_head is not protected" in findings and "matches no module" in findings
