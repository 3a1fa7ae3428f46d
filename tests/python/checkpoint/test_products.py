"""OPT's projected embedding: the products are on every rank, and equal to those of NVIDIA's script."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_latent_attention import read_tensors

from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.checkpoint.products import multiply_in_order
from enginix.errors import ModelError


def save_opt(directory: Path, *, tied: bool = True, width: int = 16) -> dict[str, np.ndarray]:
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=48, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, ffn_dim=128,
        max_position_embeddings=16, word_embed_proj_dim=width, tie_word_embeddings=tied,
    )  # fmt: skip
    OPTForCausalLM(config).float().save_pretrained(directory)
    return read_tensors(directory / "model.safetensors")


@pytest.mark.parametrize("dim", [None, 0, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_a_projected_embedding_on_two_ranks(tied: bool, dim: int | None, tmp_path: Path) -> None:
    source = save_opt(tmp_path / "model", tied=tied)
    options = ConvertOptions("float32", CheckpointMapping(2), dim is not None, dim or 0)
    convert_model(tmp_path / "model", tmp_path / "out", options)
    ranks = [read_tensors(tmp_path / f"out/rank{r}.safetensors") for r in range(2)]
    embedding = source["model.decoder.embed_tokens.weight"]
    head = embedding if tied else source["lm_head.weight"]
    products = {
        "transformer.vocab_embedding.weight": embedding @ source["model.decoder.project_in.weight"].T,
        "lm_head.weight": head @ source["model.decoder.project_out.weight"],
    }
    for name, product in products.items():
        parts = [r[name] for r in ranks]
        if name == "lm_head.weight" or dim is not None:
            parts = [np.concatenate(parts, axis=0 if name == "lm_head.weight" else dim or 0)]
        for part in parts:
            assert np.allclose(part, product, rtol=1e-6, atol=1e-9)


def test_what_a_projection_lacks_is_named(tmp_path: Path) -> None:
    save_opt(tmp_path / "model", width=32)
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"word_embed_proj_dim": 16}))
    with pytest.raises(ModelError, match=r"embed_tokens\.weight.* \[48, 32\]"):
        convert_model(tmp_path / "model", tmp_path / "out", ConvertOptions())


def test_blocks_of_a_product_join_at_their_rows() -> None:
    """Every width of the last block, exact in whole numbers; a sum beyond the dtype is refused."""
    rng = np.random.default_rng(0)
    for rows in (1, 31, 32, 33, 65):
        left, right = (rng.integers(-8, 8, (5, n)).astype(np.float16) for n in (rows, 3))
        data = b"".join(multiply_in_order(left, right, "F16"))
        assert np.array_equal(np.frombuffer(data, np.float16).reshape(rows, 3), left.T @ right)
    with pytest.raises(OverflowError):
        list(multiply_in_order(*np.full((2, 1, 1), 1000, np.float16), "F16"))
