"""Build the ``config.json`` of a checkpoint of an architecture of family_rows.json."""

from __future__ import annotations

import copy
from typing import Any

from enginix.checkpoint.config import CheckpointConfig
from enginix.checkpoint.rotary_scaling import as_whole_number, describe_rotary_scaling
from enginix.model import ModelConfig
from enginix.model.family_rows import evaluate_expression, list_family_rows, read_model_values
from enginix.tables import load_table


def describe_common_keys(model: ModelConfig) -> dict[str, Any]:
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


def describe_family_keys(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of a checkpoint's config.json that describe the model, not the way it is cut.

    Raises:
        ModelError: TensorRT-LLM has no key for a parameter of the rotary embedding.
    """
    row, where = model.description, str(model.directory)
    values = read_model_values(model.raw, row)
    values["variant"] = model.variant
    position = evaluate_expression(row["position"], values, where)
    common = describe_common_keys(model) | {"position_embedding_type": position}
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


def choose_parallel_embedding(
    model: ModelConfig, tensor_parallel: int, requested: bool, dim: int
) -> tuple[bool, int]:
    """Return use_parallel_embedding and embedding_sharding_dim; some classes do not leave the choice."""
    rule = model.description.get("parallelEmbedding")
    forced = (rule == "tied" and model.tie_word_embeddings) or (
        rule == "tensorParallel" and tensor_parallel > 1
    )
    return (True, 0) if forced else (requested, dim)
