"""Build a checkpoint's ``config.json`` with the keys and values that TensorRT-LLM's own converter writes.

tests/python/checkpoint/intended_differences.json gives the reason of each intended difference.
"""

from __future__ import annotations

import copy
from typing import Any

from enginix.checkpoint.config import CheckpointConfig
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.checkpoint.rotary_scaling import as_whole_number, describe_rotary_scaling
from enginix.model import ModelConfig
from enginix.model.family_rows import evaluate_expression, list_family_rows, read_model_values
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
        parallel_embedding, embedding_sharding_dim = _choose_parallel_embedding(
            model, mapping.tensor_parallel, parallel_embedding, embedding_sharding_dim
        )
        config = _describe_family_keys(model)
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
    config |= _describe_common_keys(model) | {
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


def _describe_common_keys(model: ModelConfig) -> dict[str, Any]:
    """Return the keys that checkpoints of every architecture have."""
    return {
        "logits_dtype": "float32",
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_size": model.head_dim,
        "intermediate_size": model.intermediate_size,
        "max_position_embeddings": model.max_position_embeddings,
        "hidden_act": model.hidden_act,
        "norm_epsilon": model.norm_epsilon,
        "rotary_embedding_dim": int(model.head_dim * model.rope.fraction),
        "qk_layernorm": False,
        "runtime_defaults": None,
    }


def _describe_family_keys(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of a checkpoint's config.json that describe the model, not the way it is cut.

    Raises:
        ModelError: TensorRT-LLM has no key for a parameter of the rotary embedding.
    """
    row, where = model.description, str(model.directory)
    values = read_model_values(model.raw, row)
    values["variant"] = model.variant
    position = evaluate_expression(row["position"], values, where)
    common = _describe_common_keys(model) | {"position_embedding_type": position}
    values |= common | {"variant": model.variant}
    values |= {"rotary_base": model.rope.base, "rotary_pct": model.rope.fraction}
    values |= {"tie_word_embeddings": model.tie_word_embeddings, **describe_rotary_scaling(model)}
    for key, expression in row["sizes"].items():
        if key not in common:
            values[key] = evaluate_expression(expression, values, where)
    if model.experts is not None:
        values |= {"experts.count": model.experts.count, "experts.top_k": model.experts.top_k}
        values |= {"experts.width": model.experts.width, "experts.shared": model.experts.shared_width}
    values |= {f"rope.{key}": value for key, value in (model.rope.scaling or {}).items()}
    values["even_head_size"] = model.hidden_size // model.num_heads
    values["rope.original"] = as_whole_number(model.rope.original or 0)
    rules = row["config"]
    constants = rules["constants"]
    if isinstance(constants, str):
        constants = load_table("architectures")["families"][constants]["constants"]
    config: dict[str, Any] = copy.deepcopy(constants) | {
        k: v for k, v in common.items() if k not in rules.get("omit", ())
    }
    return config | {key: evaluate_expression(e, values, where) for key, e in rules["set"].items()}


def find_variant(config: CheckpointConfig) -> str | None:
    """Return the variant that a checkpoint was converted as; None where its architecture has none."""
    row = list_family_rows().get(config.architecture)
    if row is None or "variants" not in row:
        return None
    key = next(key for key, expression in row["config"]["set"].items() if expression == "$variant")
    value = config.raw.get(key)
    return value if value in row["variants"]["names"] else None


def _choose_parallel_embedding(
    model: ModelConfig, tensor_parallel: int, requested: bool, dim: int
) -> tuple[bool, int]:
    """Return use_parallel_embedding and embedding_sharding_dim; some classes do not leave the choice."""
    rule = model.description.get("parallelEmbedding")
    forced = (rule == "tied" and model.tie_word_embeddings) or (
        rule == "tensorParallel" and tensor_parallel > 1
    )
    return (True, 0) if forced else (requested, dim)
