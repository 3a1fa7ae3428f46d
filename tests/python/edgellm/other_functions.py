"""Models of which NVIDIA's exporter makes another function, with status 0."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import transformers

TINY = Path(__file__).resolve().parents[3] / "tests/models/tiny-qwen3"
SHAPE = {"vocab_size": 2048, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
         "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 0}  # fmt: skip
MODELS = {
    "gelu": ("Llama", {"hidden_act": "gelu"}),
    "window": ("Mistral", {"sliding_window": 8, "head_dim": 32}),
    "layers-with-window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
}


def write_model(name: str, out: Path) -> None:
    family, more = MODELS[name]
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**SHAPE, **more)
    network = getattr(transformers, f"{family}ForCausalLM")(config)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.08)
    network.to(torch.bfloat16).save_pretrained(out)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(TINY / file, out / file)
