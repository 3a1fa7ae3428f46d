"""Build a checkpoint's ``config.json`` with the keys and values that TensorRT-LLM's own converter writes.

tests/python/checkpoint/intended_differences.json gives the reason of each intended difference.
"""

from __future__ import annotations

import copy
from typing import Any

from enginix.checkpoint.family_description import (
    choose_parallel_embedding,
    describe_common_keys,
    describe_family_keys,
)
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.checkpoint.rotary_scaling import describe_rotary_scaling
from enginix.model import ModelConfig
from enginix.tables import load_table


def describe_checkpoint_config(
    model: ModelConfig,
    dtype: str,
    mapping: CheckpointMapping,
    quantization: dict[str, Any],
    *,
    parallel_embedding: bool = False,
    embedding_sharding_dim: int = 0,
) -> dict[str, Any]:
    """Return the content of ``config.json``.

    Args:
        dtype: ``bfloat16``, ``float16`` or ``float32``.
        quantization: the keys of the ``quantization`` object that differ from its defaults.
    """
    if "layout" in model.description:
        parallel_embedding, embedding_sharding_dim = choose_parallel_embedding(
            model, mapping.tensor_parallel, parallel_embedding, embedding_sharding_dim
        )
        config = describe_family_keys(model)
    else:
        config = _describe_decoder_keys(model)
    return config | {
        "architecture": model.architecture,
        "dtype": dtype,
        "use_parallel_embedding": parallel_embedding,
        "embedding_sharding_dim": embedding_sharding_dim,
        "mapping": _describe_mapping(mapping),
        "quantization": _describe_quantization(quantization),
    }


# Defaults of the loader. Mapping.from_dict and QuantConfig raise TypeError for keys of later releases, so a
# key with its default value is left out.
LEFT_OUT: dict[str, dict[str, Any]] = {
    "mapping": {
        "cp_size": 1,
        "cp_config": {},
        "enable_attention_dp": False,
        "enable_lm_head_tp_in_adp": False,
    },
    "quantization": {
        "group_size": 128,
        "smoothquant_val": 0.5,
        "clamp_val": None,
        "use_meta_recipe": False,
        "has_zero_point": False,
        "pre_quant_scale": False,
        "mamba_ssm_cache_dtype": None,
    },
}


def _describe_quantization(quantization: dict[str, Any]) -> dict[str, Any]:
    defaults = LEFT_OUT["quantization"]
    non_default = {k: v for k, v in quantization.items() if k not in defaults or v != defaults[k]}
    # Every release knows this key, so it is always written.
    return {"quant_algo": None, "kv_cache_quant_algo": None, "exclude_modules": None} | non_default


def _describe_mapping(mapping: CheckpointMapping) -> dict[str, Any]:
    return {
        "world_size": mapping.world_size,
        "gpus_per_node": mapping.gpus_per_node,
        "tp_size": mapping.tensor_parallel,
        "pp_size": mapping.pipeline_parallel,
        "moe_tp_size": mapping.expert_tensor_parallel,
        "moe_cluster_size": 1,
        "moe_ep_size": mapping.expert_parallel,
        "attn_tp_size": mapping.tensor_parallel,
        "attn_cp_size": 1,
    }


def _describe_decoder_keys(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of an architecture of architectures.json that describe the model."""
    experts, name = model.experts, model.description["family"]
    config: dict[str, Any] = copy.deepcopy(load_table("architectures")["families"][name]["constants"])
    config |= describe_common_keys(model) | {
        "hidden_act": "silu" if model.description["mlp"] == "gated" else "swiglu",
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": model.rope.base,
        "tie_word_embeddings": model.tie_word_embeddings,
        **describe_rotary_scaling(model),
    }
    if "moe" in config and experts is not None:
        config["moe"].update(
            num_experts=experts.count,
            top_k=experts.top_k,
            normalization_mode=int(experts.renormalize),
            shared_expert_intermediate_size=experts.shared_width,
        )
    if name in ("llama", "qwen"):
        config["attn_bias"], config["mlp_bias"] = model.qkv_bias, model.mlp_bias
    if name == "qwen":
        config["qwen_type"] = model.model_type
        config["moe_intermediate_size"] = experts.width if experts else 0
        config["moe_shared_expert_intermediate_size"] = experts.shared_width if experts else 0
    if name == "phi3":
        config["rotary_pct"] = model.rope.fraction
    return config
