"""KV bytes of a token where layers do not keep keys and values by heads: computed, or said to be unknown."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from enginix.errors import ModelError
from enginix.hub.model_metadata import extract_model_metadata
from enginix.inspect import describe_model, open_model
from enginix.kinds.planning.lock_plan import NEEDED_KEYS, plan_from_lock
from enginix.kinds.planning.plan_record import PlanRequest
from enginix.kinds.planning.planner import find_kv_certainty
from enginix.machine.gpu_table import TargetGpu
from enginix.memory_plan.arithmetic import (
    ModelSizes,
    PlanLimits,
    compute_kv_token,
    estimate_workspace,
)
from enginix.memory_plan.kv_layout import find_latent, find_recurrent_layers
from enginix.model.attention_window import find_window_pattern
from enginix.model.jsonfile import select_language_model
from enginix.tables import load_table


@pytest.mark.parametrize("ranks", [1, 8, 32])
def test_a_latent_vector_is_whole_on_every_rank(ranks: int) -> None:
    """DeepSeek-V3: 61 layers keep 512 + 64 elements of a token, whatever the tensor-parallel size."""
    config = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_key_value_heads": 128}
    sizes = ModelSizes(61, 128, 128, 56, 7168, 18432, 129280, 163840, latent=find_latent(config, "model"))
    assert compute_kv_token(sizes, PlanLimits(1, 1, 1, tensor_parallel=ranks)) == 61 * 576 * 2


def test_recurrent_layers_keep_a_state_of_a_sequence() -> None:
    """Transformers' own states after three tokens; TensorRT-LLM keeps the convolution's inputs twice."""
    import torch

    config = transformers.RecurrentGemmaConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=5, num_attention_heads=2, num_key_value_heads=1,
        head_dim=4, lru_width=12, conv1d_width=4, intermediate_size=16,
    )  # fmt: skip
    model = transformers.RecurrentGemmaForCausalLM(config)
    model(torch.tensor([[1, 2, 3]]), use_cache=True)
    blocks = [layer.temporal_block for layer in model.model.layers]
    states = [b for b in blocks if hasattr(b, "rg_lru")]
    kept = sum(b.rg_lru.recurrent_states.numel() * 4 for b in states)
    kept += sum(2 * b.conv1d_state.numel() * 2 for b in states)
    found = find_recurrent_layers(config.to_dict() | {"architectures": ["RecurrentGemmaForCausalLM"]}, 2)
    assert found is not None and (found.cached, found.state) == (len(blocks) - len(states), kept)
    sizes = ModelSizes(5, 2, 1, 4, 8, 16, 16, 64, cached_layers=found.cached, state=found.state)
    assert compute_kv_token(sizes, PlanLimits(1, 1, 1)) == found.cached * 2 * 4 * 2
    workspaces = [estimate_workspace(sizes, PlanLimits(batch, 1, 1)) for batch in (3, 4)]
    assert workspaces[1] - workspaces[0] == kept + 4 * (16 + 16)


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


# Configuration → tokens of each layer in a lock; empty without windows, None for unknown ones.
WINDOWS: list[tuple[dict[str, Any], list[int] | None]] = [
    ({}, []),
    ({"layer_types": ["full_attention", "sliding_attention"]}, None),
    ({"layer_types": ["full_attention"]}, []),
    ({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8,
      "max_position_embeddings": 64}, [64, 8]),
    ({"layer_types": ["chunked_attention"], "attention_chunk_size": 8, "max_position_embeddings": 64}, [8]),
    ({"layer_types": ["linear_attention"]}, None),
    ({"sliding_window": 64, "max_position_embeddings": 64}, []),
    ({"sliding_window": 8, "max_position_embeddings": 64}, None),
    ({"sliding_window": 8, "max_position_embeddings": 64, "use_sliding_window": False}, []),
    ({"sliding_window": "8"}, None),
    ({"architectures": ["Gemma2ForCausalLM"]}, [4096, 8192] * 13),  # its class's defaults
    ({"architectures": ["Cohere2ForCausalLM"]}, None),
    ({"architectures": ["Gemma2ForCausalLM"], "sliding_window": None}, []),
    ({"architectures": ["MistralForCausalLM"], "num_hidden_layers": 2}, [4096]),  # so are these
    ({"architectures": ["MistralForCausalLM"], "num_hidden_layers": None}, None),
    ({"architectures": ["MistralForCausalLM"], "num_hidden_layers": 2,
      "max_position_embeddings": 32768}, [4096]),
    ({"architectures": ["MistralForCausalLM"], "num_hidden_layers": 2, "sliding_window": None,
      "max_position_embeddings": 32768}, []),
    ({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "sliding_window": 8,
      "max_position_embeddings": 64}, []),
    ({"architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 3, "sliding_window": 8,
      "use_sliding_window": True, "max_window_layers": 2, "max_position_embeddings": 64}, [64, 64, 8]),
    ({"architectures": ["Phi3ForCausalLM"], "num_hidden_layers": 2, "sliding_window": True,
      "max_position_embeddings": 64}, None),
]  # fmt: skip


@pytest.mark.parametrize(("config", "windows"), WINDOWS)
def test_a_lock_tells_the_windows(config: dict[str, Any], windows: list[int] | None) -> None:
    facts = extract_model_metadata({"config.json": json.dumps(config).encode()}, "lock")
    assert facts.get("attentionWindow") == windows


def test_classes_with_windows_of_their_own_are_listed() -> None:
    """What config.json leaves out is the class's: such a model is not said to have no windows."""
    table = load_table("memory_constants")
    counted = {*table["kvByHeads"]["architectures"]} - {*load_table("architectures")["architectures"]}
    sliding = {
        name
        for name, config in default_config_files().items()
        if name in counted and find_window_pattern(select_language_model(config)) != []
    }
    # Windows that reach beyond the class's own context are windows of a longer one.
    beyond = {"Exaone4ForCausalLM", "ExaoneMoeForCausalLM", "Olmo3ForCausalLM"}
    listed = {*table["slidingByDefault"]["architectures"]}
    # An older transformers lacks some of these classes: `make matrix` runs this with 4.57.
    there = {*default_configurations()}
    assert sliding | beyond & there == listed & there and sliding


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


MULTI_QUERY = [
    ({"architectures": ["FalconForCausalLM"], "num_attention_heads": 71, "multi_query": True}, 1),
    ({"architectures": ["FalconForCausalLM"], "num_attention_heads": 71}, 1),
    ({"architectures": ["RWForCausalLM"], "n_head": 71, "hidden_size": 4544, "multi_query": True}, 1),
    ({"architectures": ["FalconForCausalLM"], "num_attention_heads": 8, "multi_query": False}, 8),
    ({"architectures": ["FalconForCausalLM"], "num_attention_heads": 128, "num_kv_heads": 8,
      "new_decoder_architecture": True, "multi_query": True}, 8),
    ({"architectures": ["GPTBigCodeForCausalLM"], "n_head": 48, "n_embd": 6144}, 1),
    ({"architectures": ["GPTBigCodeForCausalLM"], "n_head": 48, "multi_query": False}, 48),
    ({"architectures": ["ChatGLMModel"], "num_attention_heads": 32, "multi_query_attention": True,
      "multi_query_group_num": 2}, 2),
    ({"architectures": ["ChatGLMModel"], "num_attention_heads": 32, "multi_query_group_num": 2}, 32),
    ({"architectures": ["LlamaForCausalLM"], "num_attention_heads": 8, "num_key_value_heads": 2}, 2),
]  # fmt: skip


@pytest.mark.parametrize(("config", "kv_heads"), MULTI_QUERY)
def test_multi_query_attention_by_a_flag(config: dict[str, Any], kv_heads: int, tmp_path: Path) -> None:
    text = json.dumps(config).encode()
    assert extract_model_metadata({"config.json": text}, "lock")["kvHeads"] == kv_heads
    (tmp_path / "config.json").write_bytes(text)
    with open_model(str(tmp_path)) as model:
        assert describe_model(model).kv_heads == kv_heads


@pytest.mark.parametrize(
    "config",
    [
        {"num_kv_shared_layers": 15},
        {"global_head_dim": 512},
        {"head_dim": 192, "v_head_dim": 128},
        {"attn_type_list": [1, 0, 1]},
        {"sparse_attention_config": {"sparse_attention_freq": [0, 1]}},
        {"layers_block_type": ["mamba", "attention"]},
        {"architectures": ["MiniCPM3ForCausalLM"], "kv_lora_rank": 256, "qk_rope_head_dim": 32},
        {"architectures": ["LongcatFlashForCausalLM"], "kv_lora_rank": 512, "qk_rope_head_dim": 64},
    ],
)
def test_more_layers_that_are_said_to_be_unknown(config: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="not known"):
        find_latent(config, "model")


def test_minimax_m2_has_attention_by_heads_alone() -> None:
    config = {"architectures": ["MiniMaxM2ForCausalLM"], "attn_type_list": [1] * 62}
    assert find_latent(config, "model") == 0


@functools.cache
def default_configurations() -> dict[str, Any]:
    """Architecture → the default configuration of its class, of every causal language model."""
    found: dict[str, Any] = {}
    mappings = (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    for model_type, names in [pair for mapping in mappings for pair in mapping.items()]:
        with contextlib.suppress(Exception):  # a class without defaults
            name = names if isinstance(names, str) else names[0]
            found.setdefault(name, transformers.AutoConfig.for_model(model_type))
    return found


@functools.cache
def default_config_files() -> dict[str, dict[str, Any]]:
    """Architecture → the config.json of the default configuration of its class."""
    configurations = default_configurations().items()
    return {name: json.loads(config.to_json_string(use_diff=False)) for name, config in configurations}


def test_a_lock_of_every_unknown_layout_is_refused_by_name() -> None:
    """What a plan from headers refuses by a key, a plan from a lock refuses by the name."""
    listed = set(load_table("memory_constants")["kvNotByHeads"]["architectures"])
    missing = []
    for name, config in default_config_files().items():
        raw = config | {"architectures": [name]}
        facts = extract_model_metadata({"config.json": json.dumps(raw).encode()}, name)
        try:
            find_latent(select_language_model(raw), name)
        except ModelError:
            if name not in listed and all(isinstance(facts.get(key), int) for key in NEEDED_KEYS):
                missing.append(name)
    assert missing == []


@pytest.mark.slow
@pytest.mark.parametrize("name", load_table("memory_constants")["kvByHeads"]["architectures"])
def test_the_formula_is_what_transformers_keeps(name: str) -> None:
    """Shapes of the cache after three tokens, on the meta device."""
    import torch

    config = default_configurations().get(name)
    if config is None:
        pytest.skip("not in this transformers")
    raw = default_config_files()[name] | {"architectures": [name]}
    facts = extract_model_metadata({"config.json": json.dumps(raw).encode()}, name)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="eager"
        ).eval()
    tokens = torch.zeros((1, 3), dtype=torch.long, device="meta")
    with torch.no_grad():
        layers = model(input_ids=tokens, use_cache=True).past_key_values.layers
    kept = sum(t.numel() // t.shape[2] for layer in layers for t in (layer.keys, layer.values))
    sizes = ModelSizes(
        facts["layers"], facts["heads"], facts["kvHeads"], facts["headSize"], 1, 1, 1, 1, kv_bits=8
    )
    assert compute_kv_token(sizes, PlanLimits(1, 1, 1)) == kept


@pytest.mark.parametrize(
    ("architecture", "windows", "certainty"),
    [
        ("LlamaForCausalLM", [], "exact"),
        ("DeepseekV3ForCausalLM", [], "exact"),
        ("Gemma2ForCausalLM", [4096], "upper bound"),
        ("LlamaForCausalLM", None, "upper bound"),
        ("NovelForCausalLM", [], "estimate"),
        (None, None, "estimate"),
    ],
)
def test_the_figure_says_how_far_it_is_known(
    architecture: str | None, windows: list[int] | None, certainty: str
) -> None:
    assert find_kv_certainty(architecture, windows) == certainty
