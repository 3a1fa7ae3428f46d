"""Random models of a given size, written without holding them in memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

CHUNK = 1 << 24


def _tensors(
    layers: int, hidden: int, inter: int, heads: int, kv: int, head: int, vocab: int
) -> dict[str, list[int]]:
    found = {"model.embed_tokens.weight": [vocab, hidden]}
    for i in range(layers):
        p = f"model.layers.{i}."
        found |= {
            f"{p}input_layernorm.weight": [hidden],
            f"{p}mlp.down_proj.weight": [hidden, inter],
            f"{p}mlp.gate_proj.weight": [inter, hidden],
            f"{p}mlp.up_proj.weight": [inter, hidden],
            f"{p}post_attention_layernorm.weight": [hidden],
            f"{p}self_attn.k_proj.weight": [kv * head, hidden],
            f"{p}self_attn.o_proj.weight": [hidden, heads * head],
            f"{p}self_attn.q_proj.weight": [heads * head, hidden],
            f"{p}self_attn.v_proj.weight": [kv * head, hidden],
        }
    return found | {"model.norm.weight": [hidden], "lm_head.weight": [vocab, hidden]}


def write_llama(directory: Path, gigabytes: float, *, fp8: bool = False) -> int:
    """A Llama of about ``gigabytes`` (10^9 bytes); returns its weights' bytes."""
    hidden, inter, heads, kv, head, vocab = 2048, 5632, 16, 8, 128, 32000
    layer = 2 * (3 * hidden * inter + 2 * hidden * heads * head + 2 * hidden * kv * head)
    layers = max(1, round((gigabytes * 1e9 - 4 * vocab * hidden) / layer) * (2 if fp8 else 1))
    directory.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
        "hidden_act": "silu", "hidden_size": hidden, "intermediate_size": inter,
        "num_attention_heads": heads, "rms_norm_eps": 1e-5,
        "num_key_value_heads": kv, "head_dim": head, "num_hidden_layers": layers, "vocab_size": vocab,
        "max_position_embeddings": 4096, "rope_theta": 10000.0, "tie_word_embeddings": False,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    shapes = _tensors(layers, hidden, inter, heads, kv, head, vocab)
    header, at = {}, 0
    scales: list[str] = []
    for name, shape in shapes.items():
        quantized = fp8 and "proj" in name
        size = int(np.prod(shape)) * (1 if quantized else 2)
        header[name] = {
            "dtype": "F8_E4M3" if quantized else "BF16",
            "shape": shape,
            "data_offsets": [at, at + size],
        }
        at += size
        if quantized:
            scales += [f"{name}_scale", name.replace(".weight", ".input_scale")]
    for name in scales:
        header[name] = {"dtype": "F32", "shape": [], "data_offsets": [at, at + 4]}
        at += 4
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(1)
    # bfloat16 in (-2, -0.5] and [0.5, 2): any byte pair of these; float8 bytes below 0x7f.
    noise = (rng.integers(0, 0x80, CHUNK // 2, np.uint16) + np.uint16(0x3F00)).tobytes()
    if fp8:
        noise = rng.integers(0, 0x7F, CHUNK, np.uint8).tobytes()
    with (directory / "model.safetensors").open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        left = at - 4 * len(scales)
        while left:
            f.write(noise[: min(left, CHUNK)])
            left -= min(left, CHUNK)
        f.write((0.01 * (1 + np.arange(len(scales)) % 7)).astype(np.float32).tobytes())
    if fp8:
        quantization = {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
        (directory / "hf_quant_config.json").write_text(json.dumps({"quantization": quantization}))
    return at
