"""Checkpoints for the GPU checks: random ones of every architecture, and the trained tiny-qwen3.

Needs torch and safetensors alone, so that it runs on a machine that has nothing else.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from enginix.reference import config as checkpoint_config
from enginix.reference import layout
from enginix.reference.executor import Executor
from enginix.reference.weights import MergedWeights

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}
SMALL: dict[str, Any] = {
    "dtype": "bfloat16",
    "vocab_size": 1000,
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_size": 64,
    "intermediate_size": 512,
    "max_position_embeddings": 1024,
    "norm_epsilon": 1e-6,
    "hidden_act": "silu",
    "position_embedding_type": "rope_gpt_neox",
}
MOE: dict[str, Any] = {"moe": {"num_experts": 8, "top_k": 2, "normalization_mode": 1}}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {
        "attn_bias": True,
        "rotary_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    },
    "MistralForCausalLM": {"rotary_scaling": {"rope_type": "dynamic", "factor": 2.0, "alpha": 1.0}},
    "MixtralForCausalLM": MOE,
    "Qwen2ForCausalLM": {
        "attn_bias": True,
        "rotary_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    },
    "Qwen2MoeForCausalLM": {**MOE, "attn_bias": True, "moe_intermediate_size": 128,
                            "moe_shared_expert_intermediate_size": 384},
    "Qwen3ForCausalLM": {"attn_bias": False},
    "Qwen3MoeForCausalLM": {**MOE, "attn_bias": False, "moe_intermediate_size": 128},
    "Phi3ForCausalLM": {
        "position_embedding_type": "long_rope",
        "rotary_embedding_dim": 48,
        "rotary_pct": 0.75,
        "original_max_position_embeddings": 64,
        "longrope_scaling_short_factors": [1.0 + i / 50 for i in range(24)],
        "longrope_scaling_long_factors": [1.0 + i / 4 for i in range(24)],
    },
}  # fmt: skip


# Of FP8 codes: values beyond 448 / FP8_SPREAD times the usual are cut.
FP8_SPREAD = 56.0
FP8: dict[str, Any] = {"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
# Shapes of Qwen3-8B and Qwen3-0.6B, with random weights.
QWEN3_8B: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_size": 128,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "attn_bias": False,
    "hidden_act": "silu",
    "position_embedding_type": "rope_gpt_neox",
}
QWEN3_0_6B: dict[str, Any] = {
    **QWEN3_8B,
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "intermediate_size": 3072,
    "max_position_embeddings": 4096,
}
# What a CPU shared with others does in seconds.
ON_CPU: dict[str, Any] = {
    **QWEN3_0_6B,
    "vocab_size": 32000,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_size": 64,
    "intermediate_size": 1536,
}


def shape(named: dict[str, Any], device: str) -> dict[str, Any]:
    """A shape as the device can take it; ENGINIX_LAYERS=N makes it shallower, for a first try."""
    found = ON_CPU if device == "cpu" else named
    layers = os.environ.get("ENGINIX_LAYERS")
    return {**found, "num_hidden_layers": int(layers)} if layers else found


def random_checkpoint(out: Path, architecture: str, device: str = "cpu", **changes: Any) -> Path:
    """A checkpoint of random weights; spreads that keep activations near 1."""
    raw = {**SMALL, "architecture": architecture, **ARCHITECTURES[architecture], **changes}
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(raw))
    config = checkpoint_config.parse_executor_config(raw, "config.json")
    generator = torch.Generator(device).manual_seed(1)
    tensors = {}
    for spec in layout.iterate_tensor_specs(config):
        values = torch.randn(spec.shape, generator=generator, device=device)
        if len(spec.shape) == 1:
            values = 1 + values / 10 if "norm" in spec.name or "ln_f" in spec.name else values / 10
        elif "embedding" not in spec.name:
            values = values / spec.shape[-1] ** 0.5
        tensors[spec.name] = values.to(DTYPES[spec.dtype]).cpu().contiguous()
    save_file(tensors, out / "rank0.safetensors")
    return out


class RandomWeights(MergedWeights):
    """The whole tensors of a checkpoint that has no files: random, made on the device when they are read."""

    def __init__(self, device: str, architecture: str = "Qwen3ForCausalLM", **changes: Any) -> None:
        raw = {**SMALL, "architecture": architecture, **ARCHITECTURES[architecture], **changes}
        self.raw, self.device = raw, device
        self.config = checkpoint_config.parse_executor_config(raw, "config.json")
        self.specs = {spec.name: spec for spec in layout.iterate_tensor_specs(self.config)}
        self.numbers = {name: number for number, name in enumerate(self.specs)}

    def get(self, name: str) -> torch.Tensor:
        spec = self.specs[name]
        generator = torch.Generator(self.device).manual_seed(self.numbers[name])
        values = torch.randn(spec.shape, generator=generator, device=self.device)
        if spec.dtype == "F8_E4M3":
            values = values * FP8_SPREAD
        elif name.endswith("weights_scaling_factor"):
            columns = self.specs[name.removesuffix("s_scaling_factor")].shape[-1]
            values = torch.full_like(values, columns**-0.5 / FP8_SPREAD)
        elif name.endswith("activation_scaling_factor"):
            values = torch.full_like(values, 1 / FP8_SPREAD)
        elif len(spec.shape) == 1:
            values = 1 + values / 10
        elif "embedding" not in name:
            values = values / spec.shape[-1] ** 0.5
        return values.to(DTYPES[spec.dtype])

    def parts(self, name: str) -> list[torch.Tensor]:
        return [self.get(name)]

    def where(self, name: str) -> str:
        return name

    def load(self, dtype: torch.dtype, **options: Any) -> Executor:
        """An executor of these weights."""
        with torch.inference_mode():
            return Executor(self, torch.device(self.device), dtype, **options)


# Ours → transformers', of what a Qwen3 layer has beside query, key and value.
NAMES = {
    "input_layernorm": "input_layernorm",
    "post_layernorm": "post_attention_layernorm",
    "attention.q_layernorm": "self_attn.q_norm",
    "attention.k_layernorm": "self_attn.k_norm",
    "attention.dense": "self_attn.o_proj",
    "mlp.fc": "mlp.gate_proj",
    "mlp.gate": "mlp.up_proj",
    "mlp.proj": "mlp.down_proj",
}


def transformers_qwen3(held: RandomWeights, dtype: torch.dtype) -> Any:
    """transformers' model with the same weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    raw = held.raw
    same = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "intermediate_size", "max_position_embeddings")  # fmt: skip
    config = Qwen3Config(
        **{k: raw[k] for k in same},
        head_dim=raw["head_size"],
        rms_norm_eps=raw["norm_epsilon"],
        rope_theta=raw.get("rotary_base", 10000.0),
        tie_word_embeddings=False,
    )
    with torch.device(held.device):
        model = Qwen3ForCausalLM(config).to(dtype).eval()
    weights = {
        "model.embed_tokens.weight": held.get("transformer.vocab_embedding.weight"),
        "model.norm.weight": held.get("transformer.ln_f.weight"),
        "lm_head.weight": held.get("lm_head.weight"),
    }
    heads = [raw[n] * raw["head_size"] for n in ("num_attention_heads", *["num_key_value_heads"] * 2)]
    for layer in range(raw["num_hidden_layers"]):
        ours, theirs = f"transformer.layers.{layer}", f"model.layers.{layer}"
        for name, source in NAMES.items():
            weights[f"{theirs}.{source}.weight"] = held.get(f"{ours}.{name}.weight")
        for part, values in zip("qkv", held.get(f"{ours}.attention.qkv.weight").split(heads), strict=True):
            weights[f"{theirs}.self_attn.{part}_proj.weight"] = values
    model.load_state_dict(weights)
    return model


def tiny_qwen3(model: Path, out: Path) -> Path:
    """tests/models/tiny-qwen3 as a checkpoint of one rank, by names alone."""
    hf = json.loads((model / "config.json").read_text())
    raw = {
        "architecture": "Qwen3ForCausalLM",
        "dtype": "bfloat16",
        "head_size": hf["head_dim"],
        "attn_bias": hf["attention_bias"],
        "hidden_act": hf["hidden_act"],
        "norm_epsilon": hf["rms_norm_eps"],
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": hf["rope_theta"],
    }
    same = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "intermediate_size", "max_position_embeddings")  # fmt: skip
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps({**raw, **{k: hf[k] for k in same}}))
    weights = load_file(model / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    tensors = {
        "transformer.vocab_embedding.weight": embedding,
        "lm_head.weight": embedding.clone(),
        "transformer.ln_f.weight": weights["model.norm.weight"],
    }
    for layer in range(hf["num_hidden_layers"]):
        ours, theirs = f"transformer.layers.{layer}", f"model.layers.{layer}"
        for name, source in NAMES.items():
            tensors[f"{ours}.{name}.weight"] = weights[f"{theirs}.{source}.weight"]
        parts = [weights[f"{theirs}.self_attn.{p}_proj.weight"] for p in "qkv"]
        tensors[f"{ours}.attention.qkv.weight"] = torch.cat(parts)
    save_file(tensors, out / "rank0.safetensors")
    return out
