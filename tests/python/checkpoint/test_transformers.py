"""Models as the installed transformers saves them: converted, and meaning the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginix.checkpoint.compare_with_model import CheckpointComparison
from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.checkpoint.verify import verify_checkpoint
from enginix.tables import load_table

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", sorted(load_table("architectures")["architectures"]))
@pytest.mark.parametrize("tied", [False, True])
def test_saved_models_convert(name: str, tied: bool, tmp_path: Path) -> None:
    import torch
    import transformers

    config = getattr(transformers, name.replace("ForCausalLM", "Config"))(
        hidden_size=64, intermediate_size=96, moe_intermediate_size=32, shared_expert_intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=101, num_experts=4,
        num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64, pad_token_id=0,
        tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "model", max_shard_size="100KB")
    assert (tmp_path / "model/model.safetensors.index.json").exists()
    convert_model(tmp_path / "model", tmp_path / "out", ConvertOptions(mapping=CheckpointMapping(2)))
    assert verify_checkpoint(tmp_path / "out").findings == []
    assert list(CheckpointComparison(tmp_path / "out", tmp_path / "model").findings()) == []
