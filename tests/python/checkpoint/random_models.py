"""Tiny models with random weights, written by the few lines that the formats need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from enginix.tables import load_table

CODES = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(ml_dtypes.bfloat16): "BF16"}
CODES |= {np.dtype(np.uint8): "U8", np.dtype(np.int8): "I8", np.dtype(ml_dtypes.float8_e4m3fn): "F8_E4M3"}


def safetensors_bytes(tensors: dict[str, np.ndarray[Any, Any]]) -> bytes:
    header, end = {}, 0
    for name, array in tensors.items():
        offsets = [end, end := end + array.nbytes]
        header[name] = {"dtype": CODES[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    return b"".join([len(text).to_bytes(8, "little"), text, *(a.tobytes() for a in tensors.values())])


def config(architecture: str, **changes: Any) -> dict[str, Any]:
    base = {
        "architectures": [architecture], "hidden_act": "silu", "dtype": "bfloat16", "hidden_size": 24,
        "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "vocab_size": 37, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": False,
        "model_type": load_table("architectures")["architectures"][architecture]["modelTypes"][0],
    }  # fmt: skip
    if architecture == "MixtralForCausalLM":
        base |= {"num_local_experts": 4, "num_experts_per_tok": 2}
    if "Moe" in architecture:
        base |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        base |= {"shared_expert_intermediate_size": 32}
    return base | changes


def shapes(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a model, after transformers' own modules."""
    architecture, hidden, head = c["architectures"][0], c["hidden_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c["vocab_size"], hidden)}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        found |= {f"{p}{n}_layernorm.weight": (hidden,) for n in ("input", "post_attention")}
        if architecture == "Phi3ForCausalLM":
            found[f"{p}self_attn.qkv_proj.weight"] = (q + 2 * kv, hidden)
        else:
            found |= {
                f"{p}self_attn.{n}_proj.weight": (s, hidden) for n, s in (("q", q), ("k", kv), ("v", kv))
            }
        found[f"{p}self_attn.o_proj.weight"] = (hidden, q)
        if architecture.startswith("Qwen2") or c.get("attention_bias"):
            found |= {f"{p}self_attn.{n}_proj.bias": (s,) for n, s in (("q", q), ("k", kv), ("v", kv))}
        if c.get("attention_bias"):
            found[f"{p}self_attn.o_proj.bias"] = (hidden,)
        if architecture.startswith("Qwen3"):
            found |= {f"{p}self_attn.{n}_norm.weight": (head,) for n in "qk"}
        found |= _mlp(p, c)
    found["model.norm.weight"] = (hidden,)
    if not c["tie_word_embeddings"]:
        found["lm_head.weight"] = (c["vocab_size"], hidden)
    return found


def _gated(prefix: str, hidden: int, width: int, names: tuple[str, str, str]) -> dict[str, tuple[int, ...]]:
    gate, up, down = names
    return {
        f"{prefix}.{gate}.weight": (width, hidden),
        f"{prefix}.{up}.weight": (width, hidden),
        f"{prefix}.{down}.weight": (hidden, width),
    }


def _mlp(p: str, c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    architecture, hidden, width = c["architectures"][0], c["hidden_size"], c["intermediate_size"]
    usual = ("gate_proj", "up_proj", "down_proj")
    found: dict[str, tuple[int, ...]] = {}
    if architecture == "Phi3ForCausalLM":
        return {
            f"{p}mlp.gate_up_proj.weight": (2 * width, hidden),
            f"{p}mlp.down_proj.weight": (hidden, width),
        }
    if architecture == "MixtralForCausalLM":
        found[f"{p}block_sparse_moe.gate.weight"] = (c["num_local_experts"], hidden)
        for e in range(c["num_local_experts"]):
            found |= _gated(f"{p}block_sparse_moe.experts.{e}", hidden, width, ("w1", "w3", "w2"))
        return found
    if "Moe" in architecture:
        found[f"{p}mlp.gate.weight"] = (c["num_experts"], hidden)
        for e in range(c["num_experts"]):
            found |= _gated(f"{p}mlp.experts.{e}", hidden, c["moe_intermediate_size"], usual)
        if architecture.startswith("Qwen2"):
            found |= _gated(f"{p}mlp.shared_expert", hidden, c["shared_expert_intermediate_size"], usual)
            found[f"{p}mlp.shared_expert_gate.weight"] = (1, hidden)
        return found
    found = _gated(f"{p}mlp", hidden, width, usual)
    if c.get("mlp_bias"):
        found |= {f"{p}mlp.{n}.bias": (hidden if n == "down_proj" else width,) for n in usual}
    return found


def write(directory: Path, c: dict[str, Any], *, seed: int = 0, shards: int = 1) -> dict[str, Any]:
    """Writes config and weights; returns the weights."""
    dtype = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}[c["dtype"]]
    rng = np.random.default_rng(seed)
    tensors = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes(c).items()}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(c))
    if shards == 1:
        (directory / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        return tensors
    names, weight_map = list(tensors), {}
    for s in range(shards):
        file = f"model-{s + 1:05}-of-{shards:05}.safetensors"
        part = {n: tensors[n] for n in names[s::shards]}
        (directory / file).write_bytes(safetensors_bytes(part))
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return tensors
