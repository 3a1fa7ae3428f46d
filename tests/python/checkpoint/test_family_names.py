"""Other names of a family, of its keys and of its tensors mean the same checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from family_golden import list_family_conversions
from family_models import MODELS, change_config, compare_conversions, write_safetensors

import golden
from enginix.checkpoint.compare_with_model import CheckpointComparison
from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.hub.model_metadata import extract_model_metadata
from enginix.model.config import parse_config, read_model_config
from enginix.model.family_rows import list_family_rows


@pytest.mark.parametrize(
    ("name", "ignored", "taken"),
    [
        ("DeepseekV2ForCausalLM", {"norm_topk_prob": True}, {"norm_topk_prob": False}),
        ("MPTForCausalLM", {"attn_config": {"alibi_bias_max": 16}}, {"attn_config": {"alibi_bias_max": 8}}),
    ],
)
def test_a_value_that_transformers_ignores_is_noted(
    name: str, ignored: dict[str, Any], taken: dict[str, Any], tmp_path: Path
) -> None:
    (key,) = ignored
    raw = json.loads((MODELS[name] / "config.json").read_text())
    for number, (keys, count) in enumerate(((ignored, 1), (taken, 0))):
        value = raw[key] | keys[key] if isinstance(keys[key], dict) else keys[key]
        notes = read_model_config(change_config(name, tmp_path / str(number), **{key: value})).notes
        assert len([note for note in notes if "transformers' class" in note]) == count


@pytest.mark.parametrize(
    ("key", "value"),
    [("q_scaling", 2.0), ("sliding_window", 4), ("logits_dtype", "float16"), ("qk_layernorm", None)],
)
def test_a_key_that_conversion_would_not_write(key: str, value: Any, tmp_path: Path) -> None:
    """TensorRT-LLM reads more keys than the executor; each is as conversion of this model writes it."""
    model = MODELS["GPTNeoXForCausalLM"]
    convert_model(model, tmp_path / "out", ConvertOptions())
    config = json.loads((tmp_path / "out/config.json").read_text())
    (tmp_path / "out/config.json").write_text(json.dumps(config | {key: value}))
    assert [finding.where for finding in CheckpointComparison(tmp_path / "out", model).findings()] == [
        f"config.json: {key}"
    ]


def test_names_without_their_prefix_and_with_masks(tmp_path: Path) -> None:
    """The Hub's first GPT-2 files lack 'transformer.' and hold the mask; the checkpoint is the same."""
    source = (MODELS["GPT2LMHeadModel"] / "model.safetensors").read_bytes()
    length = int.from_bytes(source[:8], "little")
    header = json.loads(source[8 : 8 + length])
    data = source[8 + length :]
    renamed = {name.removeprefix("transformer."): entry for name, entry in header.items()}
    renamed["h.0.attn.bias"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
    model = change_config("GPT2LMHeadModel", tmp_path)
    (model / "model.safetensors").unlink()
    text = json.dumps(renamed).encode()
    text += b" " * (-len(text) % 8)
    (model / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data + bytes(4))
    convert_model(model, tmp_path / "short", ConvertOptions())
    convert_model(MODELS["GPT2LMHeadModel"], tmp_path / "long", ConvertOptions())
    ranks = [(tmp_path / name / "rank0.safetensors").read_bytes() for name in ("short", "long")]
    assert ranks[0] == ranks[1]


ALIASES = [(name, alias) for name in sorted(MODELS) for alias in list_family_rows()[name].get("aliases", {})]


@pytest.mark.parametrize(("name", "alias"), ALIASES)
def test_another_name_of_a_key_is_the_key(name: str, alias: str, tmp_path: Path) -> None:
    """As published: Bloom's config.json has n_embed and num_attention_heads. Lock facts agree."""
    own = list_family_rows()[name]["aliases"][alias]
    original = json.loads((MODELS[name] / "config.json").read_text())
    raw = {key: value for key, value in original.items() if key not in (own, alias)}
    read, expected = (
        parse_config(r, tmp_path) for r in (raw | {alias: original[own]}, {**raw, own: original[own]})
    )
    assert not [note for note in read.notes if alias in note]
    assert replace(read, raw={}, notes=()) == replace(expected, raw={}, notes=())
    facts = [
        extract_model_metadata({"config.json": json.dumps(r).encode()}, "lock")
        for r in (raw | {alias: original[own]}, raw | {own: original[own]})
    ]
    assert facts[0] == facts[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({name for name, _ in ALIASES}))
def test_aliases_are_those_of_the_installed_transformers(name: str) -> None:
    """An alias counts before the class's own name, and every name of a size in attribute_map is one."""
    import transformers

    stem = {"GPT2LMHeadModel": "GPT2", "MPTForCausalLM": "Mpt"}.get(name, name.removesuffix("ForCausalLM"))
    kind = getattr(transformers, f"{stem}Config")
    aliases = list_family_rows()[name]["aliases"]
    for alias, own in aliases.items():
        assert getattr(kind(**{alias: 48}), own) == getattr(kind(**{own: 24, alias: 48}), own) == 48
    assert set(kind.attribute_map) <= set(aliases)


def test_gpt_neox_has_its_own_names_of_the_rotation(tmp_path: Path) -> None:
    """Transformers reads rotary_emb_base and rotary_pct; others' names change nothing."""
    keys = {"rotary_pct": 0.5, "rotary_emb_base": 700, "rope_theta": 500, "partial_rotary_factor": 0.75}
    rope = read_model_config(change_config("GPTNeoXForCausalLM", tmp_path, **keys)).rope
    assert (rope.base, rope.fraction) == (700.0, 0.5)


# Old configurations of Falcon's golden models: model_type, and the keys that mean what later ones say.
OLD_FALCON = {
    "falcon7b": ("RefinedWebModel", ("multi_query", "parallel_attn", "bias", "alibi")),
    "falcon-rw1b": ("RefinedWebModel", ("multi_query", "parallel_attn", "bias", "alibi")),
    "falcon40b": ("RefinedWeb", ("parallel_attn", "bias", "alibi")),
}


@pytest.mark.parametrize("name", OLD_FALCON)
def test_the_old_name_of_falcon(name: str, tmp_path: Path) -> None:
    """Its configuration has other keys; the checkpoint is that of FalconForCausalLM, held by golden data."""
    source = next(c.model for c in list_family_conversions() if c.case == name)
    kind, keys = OLD_FALCON[name]
    raw = json.loads((source / "config.json").read_text())
    old = {key: raw[key] for key in (*keys, "vocab_size", "hidden_size", "layer_norm_epsilon", "torch_dtype")}
    old |= {"architectures": ["RWForCausalLM"], "model_type": kind, "n_layer": raw["num_hidden_layers"]}
    old |= {"n_head": raw["num_attention_heads"]}
    old |= {"n_head_kv": raw["num_kv_heads"]} if kind == "RefinedWeb" else {}
    # Every model of the old configuration has the later one's default.
    compare_conversions(source, old, {"max_position_embeddings": 2048}, tmp_path)


def test_phi_moe_by_the_name_of_transformers(tmp_path: Path) -> None:
    """TensorRT-LLM knows the name of the Hub's own code alone; the checkpoint has that."""
    source = MODELS["PhiMoEForCausalLM"]
    model = change_config("PhiMoEForCausalLM", tmp_path, architectures=["PhimoeForCausalLM"])
    for directory, out in ((source, "theirs"), (model, "ours")):
        convert_model(directory, tmp_path / out, ConvertOptions(kind="tensorrt"))
    for name in ("config.json", "rank0.safetensors"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    assert list(CheckpointComparison(tmp_path / "ours", model).findings()) == []


def test_internlm_is_llama_with_biases(tmp_path: Path) -> None:
    """Its checkpoint is that of a Llama model with attention_bias, which golden data hold."""
    source = next(c.model for c in golden.conversions() if c.case == "llama-bias")
    raw = json.loads((source / "config.json").read_text())
    tensors = golden.tensors(source / "model.safetensors")
    made = {}
    for name, (dtype, shape, data) in tensors.items():
        if "k_proj" in name or "v_proj" in name:  # each KV head twice: InternLM has as many as heads
            half = len(data) // 2
            made[name] = (dtype, (2 * shape[0], *shape[1:]), data[:half] * 2 + data[half:] * 2)
        elif ".mlp." not in name or not name.endswith(".bias"):
            made[name] = (dtype, shape, data)
    (tmp_path / "source").mkdir()
    write_safetensors(tmp_path / "source/model.safetensors", made)
    llama = raw | {"num_key_value_heads": 4, "head_dim": None, "mlp_bias": False}
    (tmp_path / "source/config.json").write_text(json.dumps(llama))
    dropped = ("attention_bias", "mlp_bias", "num_key_value_heads", "head_dim")
    internlm = {key: value for key, value in raw.items() if key not in dropped}
    internlm |= {"architectures": ["InternLMForCausalLM"], "model_type": "internlm", "bias": True}
    compare_conversions(tmp_path / "source", internlm, {}, tmp_path)
