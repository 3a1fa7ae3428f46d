# ruff: noqa: E501 (a row a model)
"""Small random models in the shapes of published ones: fixtures of the export's tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOKENIZER = Path(__file__).resolve().parents[2] / "models/tiny-qwen3"
CHATML = (TOKENIZER / "chat_template.jinja").read_text()
LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}<|end|>\n\n{{ m['content'] | trim }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
LLAMA3 = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 500000.0,
}  # fmt: skip
MILLION = {"rope_type": "default", "rope_theta": 1e6}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
QWEN3: dict[str, Any] = {"head_dim": 64, "tie_word_embeddings": True, "rope_parameters": MILLION}
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0] * 12, "long_factor": [2.0] * 12, "rope_theta": 1e4,
    "original_max_position_embeddings": 1024, "partial_rotary_factor": 0.75,
}  # fmt: skip

# Name → arguments of `make`. `v4`: config.json as transformers 4 writes it.
EXPORTED: dict[str, dict[str, Any]] = {
    "qwen3-0.6b-v5": {"family": "Qwen3", "config": QWEN3, "generation": {"eos_token_id": [2, 0]}},
    "qwen3-0.6b-v4": {"family": "Qwen3", "config": QWEN3, "v4": True, "generation": {"eos_token_id": [2, 0]}},
    "qwen3-8b-untied-v4": {
        "family": "Qwen3", "config": {**QWEN3, "tie_word_embeddings": False, "head_dim": 32}, "v4": True,
    },
    "qwen3-attnbias": {"family": "Qwen3", "config": {**QWEN3, "attention_bias": True}},
    "qwen2.5-0.5b-v4": {
        "family": "Qwen2", "config": {"tie_word_embeddings": True, "rope_parameters": MILLION}, "v4": True,
        "changed": {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 21},
        "generation": {"eos_token_id": [2, 1]},
    },
    "qwen2.5-7b-untied": {"family": "Qwen2", "config": {"tie_word_embeddings": False, "rope_parameters": MILLION}},
    "llama3.2-1b-v4": {
        "v4": True, "template": "config", "config": {
            "head_dim": 64, "tie_word_embeddings": True, "rope_parameters": LLAMA3, "eos_token_id": [2, 4, 5],
            "bos_token_id": 1, "rms_norm_eps": 1e-5,
        },
    },
    "llama3.2-1b-v5": {
        "config": {
            "head_dim": 64, "tie_word_embeddings": True, "rope_parameters": LLAMA3, "eos_token_id": [2, 4, 5],
            "bos_token_id": 1, "rms_norm_eps": 1e-5,
        },
    },
    "llama-dynamic-v4": {
        "config": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "v4": True,
    },
    "llama-biases": {"config": {"attention_bias": True, "mlp_bias": True}},
    "llama-attnbias": {"config": {"attention_bias": True}},
    "llama-nokvkey": {"config": {"num_key_value_heads": 4}, "removed": ["num_key_value_heads"]},
    "llama-eps-1e-2": {"config": {"rms_norm_eps": 1e-2}},
    "mistral-7b-v0.3-v4": {
        "family": "Mistral", "v4": True, "changed": {"head_dim": None},
        "config": {"sliding_window": None, "head_dim": 32, "rope_parameters": MILLION},
    },
    "mistral-nemo-headdim": {"family": "Mistral", "config": {"sliding_window": None, "head_dim": 64}},
    "smollm2-135m-v4": {
        "v4": True, "changed": {"rope_interleaved": False, "is_llama_config": True}, "config": {
            "hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 3, "num_key_value_heads": 1,
            "head_dim": 64, "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
        },
    },
    "deepseek-distill-qwen": {
        "family": "Qwen2", "v4": True, "template": "config", "tokenizer": {"tokenizer_class": "LlamaTokenizerFast"},
        "config": {"tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2},
    },
    "fp16-weights": {"dtype": "float16"},
    "fp32-weights": {"dtype": "float32"},
    "vocab-2050": {"family": "Qwen3", "config": {**QWEN3, "vocab_size": 2050}},
    "tied-with-lmhead-equal": {
        "family": "Qwen3", "config": QWEN3,
        "tensors": lambda t: t.__setitem__("lm_head.weight", t["model.embed_tokens.weight"].clone()),
    },
    "eos-null-gen-only": {
        "family": "Qwen3", "config": {**QWEN3, "eos_token_id": None}, "generation": {"eos_token_id": [2, 0]},
    },
    "eos-gen-differs": {
        "family": "Qwen3", "config": {**QWEN3, "eos_token_id": 2}, "generation": {"eos_token_id": [2, 7]},
    },
    "tmpl-list1": {"template": "list1"},
    "tmpl-both": {"template": "both"},
    "tmpl-json": {"template": "json"},
    "tmpl-crlf": {"template": "crlf"},
    "tmpl-generation": {"template": "generation"},
    "zero-layer-copy": {"tensors": lambda t: [v.zero_() for n, v in t.items() if ".1.mlp." in n]},
    "subnormal": {"tensors": lambda t: t["model.layers.0.mlp.down_proj.weight"].mul_(1e-7)},
    # Beside the 45 of the report: equal tensors in healthy models, windows that every layer has.
    "twin-layers": {
        "tensors": lambda t: [
            v.copy_(t[n.replace("layers.1.", "layers.0.")]) for n, v in t.items() if "layers.1." in n
        ],
    },
    "twin-gate-up": {
        "tensors": lambda t: t["model.layers.1.mlp.up_proj.weight"].copy_(t["model.layers.1.mlp.gate_proj.weight"]),
    },
    "expanded-block": {
        "tensors": lambda t: [
            v.zero_() for n, v in t.items() if "layers.1." in n and n.endswith(("o_proj.weight", "down_proj.weight"))
        ],
    },
    "zero-biases": {"family": "Qwen2", "tensors": lambda t: [v.zero_() for n, v in t.items() if n.endswith("bias")]},
    "zero-k-bias": {"family": "Qwen2", "tensors": lambda t: t["model.layers.0.self_attn.k_proj.bias"].zero_()},
    "zero-attention": {"tensors": lambda t: [v.zero_() for n, v in t.items() if "layers.1.self_attn." in n]},
    "one-row-pruned": {"tensors": lambda t: t["model.layers.0.mlp.gate_proj.weight"][:64].zero_()},
    "twin-norms": {
        "family": "Qwen3", "config": QWEN3, "tensors": lambda t: [v.fill_(1) for n, v in t.items() if "norm" in n],
    },
    "stored-frequencies": {
        "tensors": lambda t: t.__setitem__(
            "model.layers.0.self_attn.rotary_emb.inv_freq", t["model.norm.weight"][:16].float()
        ),
    },
    "qwen2-window-everywhere": {
        "family": "Qwen2", "config": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
    },
    "mistral-window-of-context": {
        "family": "Mistral", "config": {"sliding_window": 2048, "head_dim": 32},
    },
    "qwen2-yarn-64-v4": {
        "family": "Qwen2", "v4": True, "changed": {"rope_scaling": YARN},
        "config": {"hidden_size": 256, "rope_parameters": {**YARN, "rope_type": "yarn", "rope_theta": 1e6}},
    },
}  # fmt: skip

# Name → the words of the refusal, and the arguments.
REFUSED: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "qwen2-swa": (
        ("sliding_window 8 is for 2 of 3 layers",),
        {"family": "Qwen2", "config": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}},
    ),
    "mistral-7b-v0.1-swa": (
        ("sliding_window is 8", '"sliding_window": null'),
        {"family": "Mistral", "config": {"sliding_window": 8, "head_dim": 32}, "v4": True},
    ),
    "llama-gelu": (("hidden_act is 'gelu'", "SiLU"), {"config": {"hidden_act": "gelu"}}),
    "llama-linear-v4": (
        ("rope scaling 'linear'",),
        {
            "config": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}, "v4": True,
            "changed": {"rope_scaling": {"type": "linear", "factor": 4.0}},
        },
    ),
    "llama3.1-8b-untied-sharded": (
        ("rope scaling 'llama3' with heads of 32", "64 or 128"),
        {
            "config": {"head_dim": 32, "rope_parameters": LLAMA3, "eos_token_id": [2, 4, 5]}, "v4": True,
            "shard": "500KB",
        },
    ),
    "qwen2-yarn-v4": (
        ("rope scaling 'yarn' with heads of 32",),
        {
            "family": "Qwen2", "v4": True, "changed": {"rope_scaling": YARN},
            "config": {"rope_parameters": {**YARN, "rope_type": "yarn", "rope_theta": 1e6}},
        },
    ),
    "phi4-mini": (
        ("Phi3ForCausalLM",),
        {"family": "Phi3", "config": {
            "partial_rotary_factor": 0.75, "tie_word_embeddings": True, "sliding_window": None,
            "rope_parameters": LONGROPE,
        }},
    ),
    "smollm2-notie-key": (
        ("lm_head.weight is missing", "tie_word_embeddings"),
        {"config": {"tie_word_embeddings": True}, "removed": ["tie_word_embeddings"]},
    ),
    "qwen3-notie-key": (
        ("lm_head.weight is missing", "tie_word_embeddings"),
        {"family": "Qwen3", "config": QWEN3, "removed": ["tie_word_embeddings"]},
    ),
    "tied-with-lmhead-other": (
        ("lm_head.weight is not the embedding",),
        {
            "family": "Qwen3", "config": QWEN3,
            "tensors": lambda t: t.__setitem__("lm_head.weight", t["model.embed_tokens.weight"] * 2),
        },
    ),
    "outlier-1e5": (
        ("1 value is beyond float16", "down_proj"),
        {"tensors": lambda t: t["model.layers.0.mlp.down_proj.weight"].view(-1)[:1].fill_(1e5)},
    ),
    "tmpl-list": (("chat templates by name (default, tool_use)",), {"template": "list"}),
    "tmpl-additional": (("named chat templates", "remove the directory"), {"template": "additional"}),
    "tmpl-bom": (("byte order mark",), {"template": "bom"}),
    "tmpl-bad": (("chat template is broken at line 1",), {"template": "bad"}),
}  # fmt: skip


def make(
    out: Path,
    *,
    family: str = "Llama",
    config: dict[str, Any] | None = None,
    v4: bool = False,
    changed: dict[str, Any] | None = None,
    removed: list[str] | None = None,
    template: str = "file",
    tokenizer: dict[str, Any] | None = None,
    generation: dict[str, Any] | None = None,
    dtype: str = "bfloat16",
    shard: str | None = None,
    tensors: Callable[[dict[str, Any]], Any] | None = None,
) -> None:
    """Writes one model to ``out``."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    transformers.logging.disable_progress_bar()
    # The same for every name: shapes that differ by texts alone have one graph.
    torch.manual_seed(7)
    base = {
        "vocab_size": 2048, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "eos_token_id": 2,
        "pad_token_id": 0, "bos_token_id": None,
    }  # fmt: skip
    made = getattr(transformers, f"{family}Config")(**{**base, **(config or {})})
    model = getattr(transformers, f"{family}ForCausalLM")(made)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape)
        spread = noise * 0.08 if parameter.dim() > 1 else 1 + noise * 0.2 if "norm" in name else noise * 0.3
        parameter.data.copy_(spread)
    model.to(getattr(torch, dtype)).save_pretrained(out, **({"max_shard_size": shard} if shard else {}))
    raw = json.loads((out / "config.json").read_text())
    if v4:
        rope = raw.pop("rope_parameters", None) or {}
        raw["torch_dtype"] = raw.pop("dtype", "bfloat16")
        raw["rope_theta"] = rope.pop("rope_theta", 10000.0)
        raw["rope_scaling"] = rope if rope.get("rope_type", "default") != "default" else None
        raw.pop("layer_types", None)
    raw |= changed or {}
    for key in removed or []:
        raw.pop(key, None)
    (out / "config.json").write_text(json.dumps(raw, indent=1))
    write_texts(out, template, tokenizer or {})
    if generation is None:
        (out / "generation_config.json").unlink(missing_ok=True)
    else:
        (out / "generation_config.json").write_text(json.dumps(generation))
    if tensors:
        stored = load_file(out / "model.safetensors")
        tensors(stored)
        save_file(stored, out / "model.safetensors", {"format": "pt"})


def write_texts(out: Path, template: str, tokenizer: dict[str, Any]) -> None:
    """Writes the tokenizer, and a chat template in one of the ways that models have it."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(TOKENIZER / name, out / name)
    settings = json.loads((out / "tokenizer_config.json").read_text()) | tokenizer
    plain = out / "chat_template.jinja"
    named = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": CHATML + "{# t #}"}]
    marked = (
        "{% for m in messages %}{% if m.role=='assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}{{ strftime_now('%Y') }}"
    )
    texts = {
        "file": CHATML.encode(),
        "additional": CHATML.encode(),
        "both": CHATML.encode(),
        "crlf": CHATML.replace("\n", "\r\n").encode() + b"\r\n",
        "bom": b"\xef\xbb\xbf" + CHATML.encode(),
        "bad": b"{% for m in messages %}{{ m.content }",
        "generation": marked.encode(),
    }
    if template in texts:
        plain.write_bytes(texts[template])
    if template in ("config", "both"):
        settings["chat_template"] = LLAMA3_TEMPLATE
    elif template == "list":
        settings["chat_template"] = named
    elif template == "list1":
        settings["chat_template"] = named[:1]
    elif template == "additional":
        (out / "additional_chat_templates").mkdir()
        (out / "additional_chat_templates/tool_use.jinja").write_text(named[1]["template"])
    elif template == "json":
        (out / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
