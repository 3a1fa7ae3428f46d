"""tiny-qwen3 inside a model of Qwen3-0.6B's shape: it answers, and its kernels have the sizes of a real one.

Matrices hold tiny-qwen3's in their first rows and columns. Norms over more elements are made up for in their
weights; a rotary frequency of 32 dimensions is every fourth of 128 dimensions. The other layers are random and
add a little to the residual stream, so the reference is this model and not tiny-qwen3.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensor = torch.Tensor
HIDDEN, WIDE, HEAD, HEADS, KEY_HEADS, LAYERS, VOCABULARY = 1024, 3072, 128, 16, 8, 28, 151936
# Of a random layer's output, before its matrix: small beside what tiny-qwen3's layers add.
NOISE = 0.01
# A hidden element that is the same for all tokens, by which tokens that tiny-qwen3 lacks become unlikely.
CONSTANT_AT, CONSTANT, UNLIKELY = 128, 0.02, -4000.0


def place_rotary(tiny_head: int) -> Tensor:
    """Return where the dimensions of a head go, so that each keeps its frequency and its partner."""
    half = tiny_head // 2
    first = torch.arange(half) * (HEAD // tiny_head)
    return torch.cat([first, first + HEAD // 2])


def build_embedded_model(tiny: Path, out: Path, layers: int = LAYERS, vocabulary: int = VOCABULARY) -> Path:
    """Write the model and tiny-qwen3's tokenizer files."""
    config: dict[str, Any] = json.loads((tiny / "config.json").read_text("utf-8"))
    weights = {name: tensor.float() for name, tensor in load_file(tiny / "model.safetensors").items()}
    hidden, wide, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, key_heads, own = (
        config["num_attention_heads"], config["num_key_value_heads"], config["num_hidden_layers"],
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    norm_factor, head_factor = (hidden / HIDDEN) ** 0.5, (head / HEAD) ** 0.5
    rotary = place_rotary(head)
    tensors: dict[str, Tensor] = {}

    def random(rows: int, columns: int, spread: float = 1.0) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * (spread / columns**0.5)

    def widen_norm(weight: Tensor | None) -> Tensor:
        wide_norm = torch.full((HIDDEN,), norm_factor)
        if weight is not None:
            wide_norm[:hidden] = weight * norm_factor
        return wide_norm

    def place_heads(weight: Tensor, count: int, positions: Tensor, total: int) -> Tensor:
        placed = torch.zeros(total, HEAD, HIDDEN)
        placed[:count, positions, :hidden] = weight.view(count, head, hidden)
        return placed.view(total * HEAD, HIDDEN)

    def add_layer(number: int) -> None:
        at = f"model.layers.{number}"
        # The model's own layers stand evenly among the random ones.
        step = layers // own
        source = f"model.layers.{number // step}" if number % step == 0 and number // step < own else None
        get = lambda name: weights[f"{source}.{name}.weight"] if source else None  # noqa: E731
        matrices: dict[str, Tensor] = {
            "self_attn.q_proj": random(HEADS * HEAD, HIDDEN),
            "self_attn.k_proj": random(KEY_HEADS * HEAD, HIDDEN),
            "self_attn.v_proj": random(KEY_HEADS * HEAD, HIDDEN),
            "self_attn.o_proj": random(HIDDEN, HEADS * HEAD, NOISE),
            "mlp.gate_proj": random(WIDE, HIDDEN),
            "mlp.up_proj": random(WIDE, HIDDEN),
            "mlp.down_proj": random(HIDDEN, WIDE, NOISE),
        }
        q_norm = k_norm = torch.ones(HEAD)
        if source:
            q_norm, k_norm = torch.zeros(HEAD), torch.zeros(HEAD)
            # Scores are divided by the root of the head's size, of which a wider one has more.
            q_norm[rotary] = get("self_attn.q_norm")
            k_norm[rotary] = get("self_attn.k_norm") * head_factor
            plain = torch.arange(head)
            matrices["self_attn.q_proj"] = place_heads(get("self_attn.q_proj"), heads, rotary, HEADS)
            matrices["self_attn.k_proj"] = place_heads(get("self_attn.k_proj"), key_heads, rotary, KEY_HEADS)
            matrices["self_attn.v_proj"] = place_heads(get("self_attn.v_proj"), key_heads, plain, KEY_HEADS)
            output = torch.zeros(HIDDEN, HEADS, HEAD)
            output[:hidden, :heads, :head] = get("self_attn.o_proj").view(hidden, heads, head)
            matrices["self_attn.o_proj"] = output.view(HIDDEN, HEADS * HEAD)
            for name in ("gate_proj", "up_proj"):
                matrices[f"mlp.{name}"] = torch.zeros(WIDE, HIDDEN)
                matrices[f"mlp.{name}"][:wide, :hidden] = get(f"mlp.{name}")
            matrices["mlp.down_proj"] = torch.zeros(HIDDEN, WIDE)
            matrices["mlp.down_proj"][:hidden, :wide] = get("mlp.down_proj")
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            matrices[name][CONSTANT_AT] = 0
        tensors.update({f"{at}.{name}.weight": matrix for name, matrix in matrices.items()})
        tensors[f"{at}.self_attn.q_norm.weight"] = q_norm
        tensors[f"{at}.self_attn.k_norm.weight"] = k_norm
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}.{name}.weight"] = widen_norm(get(name))

    for number in range(layers):
        add_layer(number)
    embedding, output_head = torch.zeros(vocabulary, HIDDEN), torch.zeros(vocabulary, HIDDEN)
    known = config["vocab_size"]
    embedding[:known, :hidden] = output_head[:known, :hidden] = weights["model.embed_tokens.weight"]
    embedding[:, CONSTANT_AT] = CONSTANT
    output_head[known:, CONSTANT_AT] = UNLIKELY
    tensors |= {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": output_head,
        "model.norm.weight": widen_norm(weights["model.norm.weight"]),
    }
    shutil.copytree(tiny, out)
    (out / "model.safetensors").unlink()
    save_file(
        {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()},
        out / "model.safetensors",
        {"format": "pt"},
    )
    changes = {
        "hidden_size": HIDDEN,
        "intermediate_size": WIDE,
        "head_dim": HEAD,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "num_hidden_layers": layers,
        "max_window_layers": layers,
        "vocab_size": vocabulary,
        "rms_norm_eps": config["rms_norm_eps"] * hidden / HIDDEN,
        "tie_word_embeddings": False,
    }
    (out / "config.json").write_text(json.dumps({**config, **changes}, indent=2) + "\n", "utf-8")
    return out
