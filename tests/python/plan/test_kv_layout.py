"""KV bytes of a token where layers do not keep keys and values by heads: computed, or said to be unknown."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import transformers

from enginix.errors import ModelError
from enginix.hub.model_metadata import extract_model_metadata
from enginix.kinds.planning.lock_plan import plan_from_lock
from enginix.kinds.planning.planner import PlanRequest
from enginix.memory_plan.arithmetic import ModelSizes, PlanLimits, TargetGpu, compute_kv_token
from enginix.memory_plan.kv_layout import find_latent, has_sliding_layers
from enginix.tables import load_table


@pytest.mark.parametrize("ranks", [1, 8, 32])
def test_a_latent_vector_is_whole_on_every_rank(ranks: int) -> None:
    """DeepSeek-V3: 61 layers keep 512 + 64 elements of a token, whatever the tensor-parallel size."""
    config = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_key_value_heads": 128}
    sizes = ModelSizes(61, 128, 128, 56, 7168, 18432, 129280, 163840, latent=find_latent(config, "model"))
    assert compute_kv_token(sizes, PlanLimits(1, 1, 1, tensor_parallel=ranks)) == 61 * 576 * 2


@pytest.mark.parametrize(
    "config",
    [
        {"layer_types": ["full_attention", "linear_attention"]},
        {"hybrid_override_pattern": "M-M*"},
        {"block_configs": [{}]},
        {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "index_head_dim": 128},
        {"kv_lora_rank": 512},
        {"architectures": ["NemotronHForCausalLM"]},
    ],
)
def test_other_layers_are_said_to_be_unknown(config: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="not known"):
        find_latent(config, "model")


def test_windows_are_an_upper_bound() -> None:
    assert has_sliding_layers({"layer_types": ["full_attention", "sliding_attention"]})
    assert not has_sliding_layers({"layer_types": ["full_attention"]}) and not has_sliding_layers({})


def test_a_lock_does_not_guess() -> None:
    text = b'{"architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 64, "num_attention_heads": 4}'
    assert not {"headSize", "kvHeads"} & set(extract_model_metadata({"config.json": text}, "lock"))
    text = b'{"architectures": ["DeciLMForCausalLM"], "num_attention_heads": 4, "num_key_value_heads": null}'
    assert "kvHeads" not in extract_model_metadata({"config.json": text}, "lock")
    text = b'{"architectures": ["Qwen3ForCausalLM"], "hidden_size": 64, "num_attention_heads": 4}'
    facts = extract_model_metadata({"config.json": text}, "lock")
    assert (facts["headSize"], facts["kvHeads"]) == (128, 32)  # the class's defaults


def test_an_older_lock_with_guesses_is_not_believed() -> None:
    facts = {"architecture": "DeepseekV3ForCausalLM", "headSize": 64, "kvHeads": 16, "layers": 4}
    with pytest.raises(ModelError, match="KV cache size of a token"):
        plan_from_lock(facts, {"model.safetensors": 1}, TargetGpu("g", 90, 1 << 36), PlanRequest(), "lock")


def test_the_list_has_the_architectures_of_transformers_with_latent_attention() -> None:
    listed = set(load_table("memory_constants")["kvNotByHeads"]["architectures"])
    for name in ("DeepseekV2", "DeepseekV3", "MiniCPM3", "Glm4MoeLite", "LongcatFlash"):
        kind = getattr(transformers, f"{name}Config", None)
        if kind is not None and "kv_lora_rank" in inspect.signature(kind).parameters:
            assert f"{name}ForCausalLM" in listed
