"""Latent attention: the absorbed queries give the model's own scores, and every rank its heads."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import golden
from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.checkpoint.verify import verify_checkpoint
from enginix.errors import ModelError

YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "mscale": 0.707,
    "mscale_all_dim": 0.707, "beta_fast": 32, "beta_slow": 1,
}  # fmt: skip


def save_random_model(
    directory: Path, heads: int, nope: int, rope: int, latent: int, low: int | None
) -> None:
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    config = DeepseekV2Config(
        vocab_size=8, hidden_size=heads * 8, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=heads, intermediate_size=8, moe_intermediate_size=8, n_routed_experts=2,
        n_shared_experts=1, num_experts_per_tok=1, first_k_dense_replace=1, max_position_embeddings=32,
        q_lora_rank=low, kv_lora_rank=latent, qk_nope_head_dim=nope, qk_rope_head_dim=rope, v_head_dim=nope,
        rope_scaling=YARN,
    )  # fmt: skip
    DeepseekV2ForCausalLM(config).save_pretrained(directory)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    return {
        name: np.frombuffer(data, np.float32).reshape(shape).astype(np.float64)
        for name, (_, shape, data) in golden.tensors(path).items()
    }


@given(
    heads=st.sampled_from((2, 4)),
    nope=st.integers(1, 5),
    rope=st.sampled_from((2, 4)),
    latent=st.integers(1, 40),
    low=st.one_of(st.none(), st.integers(1, 9)),
    tp=st.sampled_from((1, 2)),
)
@settings(max_examples=12, deadline=None)
def test_scores_are_those_of_the_model(
    heads: int, nope: int, rope: int, latent: int, low: int | None, tp: int
) -> None:
    """A head's score without rotation is q . (W_k c); absorbed it is (W_k^T q) . c."""
    torch.manual_seed(heads + 7 * nope + 31 * latent)
    with tempfile.TemporaryDirectory() as work:
        model, out = Path(work) / "model", Path(work) / "out"
        save_random_model(model, heads, nope, rope, latent, low)
        convert_model(model, out, ConvertOptions(dtype="float32", mapping=CheckpointMapping(tp)))
        assert verify_checkpoint(out).findings == []
        source = read_tensors(model / "model.safetensors")
        ranks = [read_tensors(out / f"rank{r}.safetensors") for r in range(tp)]
    theirs, ours = "model.layers.1.self_attn.", "transformer.layers.1.attention."
    queries = source[f"{theirs}q_proj.weight" if low is None else f"{theirs}q_b_proj.weight"]
    queries = queries.reshape(heads, nope + rope, -1)
    up = source[f"{theirs}kv_b_proj.weight"].reshape(heads, 2 * nope, latent)
    absorbed = np.concatenate(
        [r[f"{ours}fused_q_proj"].reshape(heads // tp, latent + rope, -1) for r in ranks]
    )
    state, latents = np.arange(queries.shape[2]) + 1.0, np.arange(latent) - 2.0
    for head in range(heads):
        score = (queries[head, :nope] @ state) @ (up[head, :nope] @ latents)
        assert np.isclose((absorbed[head, :latent] @ state) @ latents, score, rtol=1e-4, atol=1e-6)
        assert np.array_equal(absorbed[head, latent:], queries[head, nope:])
    own = heads // tp
    for rank, tensors in enumerate(ranks):
        part = slice(rank * own, (rank + 1) * own)
        assert np.array_equal(tensors[f"{ours}q_b_proj"], queries[part].reshape(own * (nope + rope), -1))
        keys, values = np.split(tensors[f"{ours}kv_b_proj"], 2)
        assert np.array_equal(keys.reshape(own, nope, latent), up[part, :nope])
        assert np.array_equal(values.reshape(own, nope, latent), up[part, nope:])


def test_rope_scaling_is_needed(tmp_path: Path) -> None:
    """TensorRT-LLM's class reads yarn's keys; a model without them is refused by name."""
    save_random_model(tmp_path / "model", 2, 4, 4, 8, None)
    raw = json.loads((tmp_path / "model/config.json").read_text())
    raw["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    (tmp_path / "model/config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match="rope_scaling is absent") as e:
        convert_model(tmp_path / "model", tmp_path / "out", ConvertOptions())
    assert e.value.fix and "transformers" in e.value.fix
