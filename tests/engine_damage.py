"""Damage of an engine's files and weights, and of what it computes; each damage once passed the gates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from enginix.reference.executor import Executor
from tiny_model import Tensors

Change = Callable[[Path], object]


def edit(path: Path, change: Callable[[Any], object]) -> None:
    raw = json.loads(path.read_text("utf-8"))
    change(raw)
    path.write_text(json.dumps(raw, ensure_ascii=False), "utf-8")


def exchange_pieces(directory: Path, *pairs: tuple[int, int]) -> None:
    def change(raw: Any) -> None:
        vocabulary = raw["model"]["vocab"]
        words = sorted(vocabulary, key=vocabulary.get)
        for a, b in pairs:
            vocabulary[words[a]], vocabulary[words[b]] = vocabulary[words[b]], vocabulary[words[a]]

    edit(directory / "tokenizer.json", change)


def wrap_template(directory: Path, before: str, after: str = "") -> None:
    path = directory / "chat_template.jinja"
    path.write_text(before + path.read_text("utf-8") + after, "utf-8")


UPPER = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
# Name → change of a directory of tokenizer files, and what the verdict names.
FILES: dict[str, tuple[Change, str]] = {
    "two rare pieces exchanged": (lambda d: exchange_pieces(d, (1990, 1991)), "vocabulary: 2 entries"),
    "100 pieces exchanged": (
        lambda d: exchange_pieces(d, *((n, n + 1) for n in range(300, 400, 2))),
        "vocabulary: 100 entries",
    ),
    "merges in another order": (
        lambda d: edit(d / "tokenizer.json", lambda r: r["model"]["merges"].sort(key=str)),
        "model of the tokenizer",
    ),
    "no normalisation": (
        lambda d: edit(d / "tokenizer.json", lambda r: r.update(normalizer=None)),
        "normalizer",
    ),
    "another end token in the generation defaults": (
        lambda d: edit(d / "generation_config.json", lambda r: r.update(eos_token_id=1999)),
        "end tokens of the generation_config.json: [1999]",
    ),
    "one of two end tokens lost": (
        lambda d: edit(d / "generation_config.json", lambda r: r.update(eos_token_id=[2])),
        "[2], the model's [2, 0]",
    ),
    "sampling defaults": (
        lambda d: edit(d / "generation_config.json", lambda r: r.update(temperature=1.9, do_sample=True)),
        "temperature is 1.9",
    ),
    "another end token of the tokenizer": (
        lambda d: edit(d / "tokenizer_config.json", lambda r: r.update(eos_token="<|im_start|>")),
        "special tokens",
    ),
    "a template of upper-case letters": (
        lambda d: (d / "chat_template.jinja").write_text(UPPER),
        "chat template",
    ),
    "a template that differs for two messages": (
        lambda d: wrap_template(d, "{%- if messages|length > 1 -%}IGNORE{%- else -%}", "{%- endif -%}"),
        "'system message' has other tokens",
    ),
    "a template that differs for tools": (
        lambda d: wrap_template(d, "{%- if tools -%}IGNORE{%- endif -%}"),
        "'tools' has other tokens",
    ),
    "a template that differs for nine messages": (
        lambda d: wrap_template(d, "{%- if messages|length > 8 -%}IGNORE{%- endif -%}"),
        "chat template",
    ),
    "no template": (lambda d: (d / "chat_template.jinja").unlink(), "chat template"),
    "configuration beside the tokenizer": (
        lambda d: (d / "config.json").write_text('{"model_type": "llama"}'),
        "config.json is no file of a tokenizer",
    ),
    "another file of a tokenizer": (lambda d: (d / "vocab.json").write_text("{}"), "vocab.json"),
}  # fmt: skip

# What transformers passes over in these files, and a server or an earlier release reads.
PASSED_OVER: dict[str, tuple[Change, str]] = {
    "another template beside the one that counts": (
        lambda d: edit(d / "tokenizer_config.json", lambda r: r.update(chat_template=UPPER)),
        "another chat template 'default'",
    ),
    "a template for tools in a list": (
        lambda d: edit(
            d / "tokenizer_config.json",
            lambda r: r.update(chat_template=[{"name": "tool_use", "template": UPPER}]),
        ),
        "another chat template 'tool_use'",
    ),
    "a template of processors": (
        lambda d: (d / "chat_template.json").write_text(json.dumps({"chat_template": UPPER})),
        "another chat template 'default'",
    ),
    "special tokens that are plain": (
        lambda d: edit(
            d / "tokenizer.json", lambda r: [t.update(special=not t["special"]) for t in r["added_tokens"]]
        ),
        "other flags of added tokens",
    ),
    "a file of added tokens": (
        lambda d: (d / "added_tokens.json").write_text('{"zebra": 1500}'),
        "added_tokens.json: 'zebra' is 1500",
    ),
    "another map of special tokens": (
        lambda d: edit(d / "special_tokens_map.json", lambda r: r.update(eos_token="<|im_start|>")),
        "special_tokens_map.json: eos_token",
    ),
    "a token before each text": (
        lambda d: edit(d / "tokenizer_config.json", lambda r: r.update(add_bos_token=True)),
        "add_bos_token is True",
    ),
    "a space before each text": (
        lambda d: edit(d / "tokenizer_config.json", lambda r: r.update(add_prefix_space=True)),
        "add_prefix_space is True",
    ),
    "code of a stranger": (
        lambda d: edit(
            d / "tokenizer_config.json", lambda r: r.update(auto_map={"AutoTokenizer": ["x.Y", None]})
        ),
        "auto_map is",
    ),
    "a template that reads the date": (
        lambda d: wrap_template(d, "{%- if strftime_now('%Y')|int > 2030 -%}IGNORE{%- endif -%}"),
        "chat template",
    ),
    "another normalizer of a rare letter": (
        lambda d: edit(
            d / "tokenizer.json",
            lambda r: r.update(
                normalizer={"type": "Replace", "pattern": {"String": "\u16a0"}, "content": "x"}
            ),
        ),
        "normalizer",
    ),
}


# What the model's files have, and the engine's lack; the first three are passed over by transformers.
LACKING: dict[str, tuple[Change, str]] = {
    "a template of processors": (
        PASSED_OVER["a template of processors"][0],
        "the model's another chat template",
    ),
    "added tokens": (PASSED_OVER["a file of added tokens"][0], "the model's added_tokens.json: 'zebra'"),
    "special tokens": (
        PASSED_OVER["another map of special tokens"][0],
        "the model's special_tokens_map.json: eos_token",
    ),
    "a token before each text": (PASSED_OVER["a token before each text"][0], "add_bos_token is None"),
    "a template for tools": (PASSED_OVER["a template for tools in a list"][0], "chat template"),
    "another file of a tokenizer": (lambda d: (d / "tekken.json").write_text("{}"), "tekken.json"),
}


DENSE = "transformer.layers.2.attention.dense"
FC, QKV = "transformer.layers.2.mlp.fc", "transformer.layers.2.attention.qkv"


def raw_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor


def zero_head(tensors: Tensors, layer: int, head: int) -> None:
    name = f"transformer.layers.{layer}.attention.dense.weight"
    size = 16 if tensors[name].dtype is torch.uint8 else 32  # NVFP4 has two columns in a byte
    raw_bytes(tensors[name])[:, head * size : (head + 1) * size] = 0


def exchange_rows(tensors: Tensors, name: str, a: slice, b: slice) -> None:
    rows = raw_bytes(tensors[name])
    rows[a], rows[b] = rows[b].clone(), rows[a].clone()


def exchange_key_heads(tensors: Tensors) -> None:
    # Of 512 outputs; INT4 has two of them in a byte.
    size = 32 * len(tensors[f"{QKV}.weight"]) // 512
    exchange_rows(tensors, f"{QKV}.weight", slice(8 * size, 9 * size), slice(9 * size, 10 * size))


def copy_layer(tensors: Tensors) -> None:
    for name in [name for name in tensors if name.startswith("transformer.layers.1.mlp.fc.")]:
        tensors[name.replace(".1.", ".2.")] = tensors[name].clone()


def roll_norm(tensors: Tensors) -> None:
    name = "transformer.layers.1.attention.q_layernorm.weight"
    tensors[name] = tensors[name].roll(1)


WEIGHTS: dict[str, Callable[[Tensors], object]] = {
    "layer 2 head 5 zeroed": lambda t: zero_head(t, 2, 5),
    "layer 3 head 7 zeroed": lambda t: zero_head(t, 3, 7),
    "embeddings of two rare ids exchanged": lambda t: exchange_rows(
        t, "transformer.vocab_embedding.weight", slice(1500, 1501), slice(1501, 1502)
    ),
    "two key heads exchanged": exchange_key_heads,
    "another layer's matrix": copy_layer,
    "one norm × 1.02": lambda t: t["transformer.layers.0.post_layernorm.weight"].mul_(1.02),
    "a norm of queries rolled": roll_norm,
    "one value of the head": lambda t: t["lm_head.weight"][7, 7].add_(1),
    "NaN in one embedding": lambda t: t["transformer.vocab_embedding.weight"][1999].fill_(float("nan")),
}  # fmt: skip


def spoil(executor: Executor, change: Callable[[torch.Tensor], torch.Tensor]) -> Executor:
    """A stand-in for a runtime that is wrong from some position on."""
    forward = executor.forward
    executor.forward = lambda *args, **more: list(map(change, forward(*args, **more)))  # type: ignore[method-assign]
    return executor
