"""The function survives: the reference executor on the checkpoint against transformers on the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.tables import load_table

pytestmark = pytest.mark.slow
PHI3 = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3] * 2,
    "long_factor": [2.0] * 8,
    "rope_theta": 1e4,
}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 54321.0},
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32, "rope_theta": 1e4,
    },
}  # fmt: skip
CASES = [(name, "default") for name in sorted(load_table("architectures")["architectures"])]
CASES += [("LlamaForCausalLM", rope) for rope in ROPES if rope != "default"] + [
    ("Phi3ForCausalLM", "longrope")
]


@pytest.mark.parametrize(("tp", "pp", "ep"), [(1, 1, 1), (2, 1, 2), (4, 2, 2)])
@pytest.mark.parametrize(("name", "rope"), CASES, ids=lambda v: str(v))
def test_logits(name: str, rope: str, tp: int, pp: int, ep: int, tmp_path: Path) -> None:
    import torch
    import transformers

    from enginix.reference.executor import Executor

    config = getattr(transformers, name.replace("ForCausalLM", "Config"))(
        hidden_size=64, intermediate_size=96, moe_intermediate_size=32, shared_expert_intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=101, num_experts=4,
        num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64, pad_token_id=0,
        norm_topk_prob=True, original_max_position_embeddings=32,
        rope_parameters=PHI3 if rope == "longrope" else ROPES[rope],
    )  # fmt: skip
    torch.manual_seed(9)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    model.save_pretrained(tmp_path / "model")
    moe = "experts" in load_table("architectures")["architectures"][name]["mlp"]
    options = ConvertOptions(dtype="float32", mapping=CheckpointMapping(tp, pp, ep if moe else 1))
    convert_model(tmp_path / "model", tmp_path / "out", options)
    tokens = torch.randint(1, 101, (1, 24))
    with torch.no_grad():
        theirs = model(tokens).logits[0]
    ours = Executor.load(tmp_path / "out").forward([tokens[0].tolist()])[0]
    assert torch.allclose(ours, theirs, atol=2e-4, rtol=2e-4), float((ours - theirs).abs().max())
