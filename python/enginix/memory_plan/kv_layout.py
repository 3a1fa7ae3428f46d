"""The KV cache of a token: keys and values by heads, a latent vector, or a layout that is not supported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enginix.errors import ModelError
from enginix.model.family_rows import list_family_rows, read_model_values
from enginix.tables import load_table

RECURRENT = "RecurrentGemmaForCausalLM"

# Keys of layers that keep a state in place of keys and values, of layers with different shapes, and of layers
# that share a cache.
_STATE_KEYS = (
    "attn_layer_indices", "attn_layer_period", "block_configs", "block_types",
    "cla_share_factor", "conv_L_cache", "full_attention_interval", "global_head_dim",
    "hybrid_layer_pattern", "hybrid_override_pattern", "layers_block_type", "linear_attn_config",
    "linear_num_key_heads", "linear_num_value_heads", "mamba_d_ssm", "mamba_d_state", "mamba_num_heads",
    "mb_per_layer", "num_global_key_value_heads", "num_kv_shared_layers",
    "sparse_attention_config", "state_size", "swa_head_dim", "swa_num_key_value_heads",
)  # fmt: skip
_PLAIN_LAYER_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass(frozen=True)
class RecurrentLayers:
    """What a model keeps where some of its layers are recurrent.

    Attributes:
        cached: layers that keep keys and values of each token.
        state: bytes of a sequence in all other layers together.
    """

    cached: int
    state: int


def find_recurrent_layers(config: Mapping[str, Any], element_bytes: int) -> RecurrentLayers | None:
    """Return the layers of a RecurrentGemma model; None for other models, and for sizes that are no numbers.

    A recurrent layer keeps a float32 state of ``lru_width`` elements and, twice, the last inputs of its
    convolution. Source: TensorRT-LLM 0.17, runtime/generation.py.
    """
    if config.get("architectures") != [RECURRENT]:
        return None
    values = read_model_values(config, list_family_rows()[RECURRENT])
    layers, kinds = values["hf.num_hidden_layers"], values["hf.block_types"]
    width, taps = values.get("hf.lru_width") or values["hf.hidden_size"], values["hf.conv1d_width"]
    sizes = (layers, width, taps)
    if not isinstance(kinds, list) or not kinds or any(type(n) is not int or n < 1 for n in sizes):
        return None
    recurrent = sum(kinds[i % len(kinds)] == "recurrent" for i in range(layers))
    return RecurrentLayers(layers - recurrent, recurrent * width * (4 + 2 * (taps - 1) * element_bytes))


def find_latent(config: Mapping[str, Any], where: str) -> int:
    """Return the elements of a token that one layer of multi-head latent attention keeps on every rank.

    0 for a model whose layers keep keys and values by heads.

    Raises:
        ModelError: the layout of its KV cache is not known here.
    """
    rank, rotated = config.get("kv_lora_rank"), config.get("qk_rope_head_dim")
    names = config.get("architectures")
    names = names if isinstance(names, list) else []
    if isinstance(rank, int) and rank > 0:
        # DeepSeek's sparse attention keeps an index of its own beside the latent vector.
        if not isinstance(rotated, int) or config.get("index_head_dim"):
            raise _make_unknown_error("kv_lora_rank with index_head_dim, or without qk_rope_head_dim", where)
        if names and names[0] not in load_table("memory_constants")["latent"]["architectures"]:
            raise _make_unknown_error(f"kv_lora_rank of {names[0]}", where)
        return rank + rotated
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and (other := sorted({str(kind) for kind in kinds} - _PLAIN_LAYER_TYPES)):
        raise _make_unknown_error(f"layer_types {other[0]}", where)
    types = config.get("attn_type_list")  # MiniMax: 1 is attention by heads, 0 a linear layer
    if isinstance(types, list) and set(map(str, types)) != {"1"}:
        raise _make_unknown_error("attn_type_list", where)
    if config.get("v_head_dim") and config["v_head_dim"] != config.get("head_dim"):
        raise _make_unknown_error("v_head_dim, another size than head_dim", where)
    for key in _STATE_KEYS:
        if config.get(key):
            raise _make_unknown_error(key, where)
    if names and names[0] in load_table("memory_constants")["kvNotByHeads"]["architectures"]:
        raise _make_unknown_error(str(names[0]), where)
    return 0


def is_counted_by_heads(architecture: str | None) -> bool:
    """Return whether the formula by heads, or by the latent vector, was confirmed for an architecture."""
    table = load_table("memory_constants")
    return any(architecture in table[name]["architectures"] for name in ("kvByHeads", "latent"))


def _make_unknown_error(what: str, where: str) -> ModelError:
    return ModelError(
        f"the KV cache of a token is not known for this kind of layers ({what})",
        where=where,
        fix="serve the model with the llmapi kind and read the size of the KV cache in the runtime's log",
    )
