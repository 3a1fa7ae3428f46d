"""Tensors and scales that are not the model's, or that float16 does not hold, are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from enginix.kinds.edgellm.source import read_export_source

from .conftest import change, refuse


def change_tensors(model: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(model / "model.safetensors")
    edit(tensors)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


NORM = "model.layers.1.input_layernorm.weight"
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t[UP].view(-1)[3].fill_(float("nan")), "1 value is NaN or infinite"),
        (lambda t: t[NORM][:2].fill_(float("inf")), "2 values are NaN or infinite"),
        (lambda t: t[NORM][:1].fill_(65536), "beyond float16"),
        (lambda t: t.pop(UP), "up_proj.weight is missing"),
        (lambda t: t.__setitem__("model.layers.0.self_attn.q_proj.bias", torch.ones(256)), "q_proj.bias"),
        (lambda t: t.__setitem__("model.layers.0.mlp.extra.weight", torch.ones(3)), "extra.weight"),
        (lambda t: t.__setitem__(UP, t[UP][:-1].clone()), "[511, 128], and config.json makes it [512, 128]"),
        (lambda t: t.__setitem__("model.embed_tokens.weight", torch.ones(2000, 128)), "[2048, 128]"),
        (lambda t: [t.pop(n) for n in list(t) if "layers.3." in n], "4 layers, the weights have 3"),
        (lambda t: [t.pop(n) for n in list(t) if n.endswith("q_norm.weight")], "q_norm.weight is missing"),
    ],
)
def test_tensors_that_are_not_the_models(
    edit: Callable[[dict[str, torch.Tensor]], Any], words: str, model: Path
) -> None:
    change_tensors(model, edit)
    refuse(model, words)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.__setitem__(UP, t[UP].double()), "is F64, and a model"),
        (lambda t: t.__setitem__(UP, t[UP].to(torch.int8)), "is I8, and a model"),
        (lambda t: t.__setitem__(UP, t[UP].to(torch.float8_e4m3fn)), "is F8_E4M3, and a model"),
        (lambda t: [t.__setitem__(n.replace("s.3.", "s.7."), t.pop(n)) for n in list(t) if "s.3." in n],
         "layer 3 is in config.json alone"),
    ],
)  # fmt: skip
def test_weights_of_types_and_layers_that_are_not_the_models(edit: Any, words: str, model: Path) -> None:
    change_tensors(model, edit)
    refuse(model, words)


def quantize_one(model: Path, **scales: float | None) -> None:
    """Have one FP8 matrix in the model, with scales that may be missing or wrong."""
    section = {"quant_algo": "FP8", "kv_cache_quant_algo": None}
    (model / "hf_quant_config.json").write_text(json.dumps({"quantization": section}))

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[UP] = tensors[UP].to(torch.float8_e4m3fn)
        for name, value in {"weight_scale": 0.01, "input_scale": 0.02, **scales}.items():
            if value is not None:
                tensors[UP.replace("weight", name)] = torch.tensor(value)

    change_tensors(model, edit)


@pytest.mark.parametrize(
    ("scales", "words"),
    [
        ({"weight_scale": None}, ("up_proj.weight_scale is missing",)),
        ({"input_scale": None}, ("up_proj.input_scale is missing",)),
        ({"weight_scale": 0.0}, ("up_proj.weight_scale", "the scale is 0")),
        ({"input_scale": 0.0}, ("up_proj.input_scale", "the scale is 0")),
        ({"input_scale": -0.1}, ("up_proj.input_scale", "the scale is -0.1")),
        ({"input_scale": 1e-8}, ("up_proj.input_scale", "1e-08 becomes 0 in float16")),
        ({"input_scale": 1.5e-7}, ("up_proj.input_scale", "1.5e-07 becomes 1.78814e-07")),
        ({"input_scale": float("nan")}, ("up_proj.input_scale", "NaN or infinite")),
        ({"weight_scale": 1e6}, ("up_proj.weight_scale", "beyond float16")),
    ],
)
def test_scales_that_are_none(scales: dict[str, Any], words: tuple[str, ...], model: Path) -> None:
    quantize_one(model, **scales)
    refuse(model, *words)


def test_scales_of_a_healthy_matrix_pass(model: Path) -> None:
    quantize_one(model)
    assert read_export_source(model).quantization == "FP8"
    # ModelOpt writes such a scale for a matrix of zeros, which expanded models have.
    change_tensors(model, lambda t: [t[UP].view(torch.uint8).zero_(), t[f"{UP}_scale"].zero_()])
    assert read_export_source(model)


@pytest.mark.parametrize("value", [65504.0, -65504.0, 65519.0, 1e-30])
def test_values_that_float16_holds_pass(value: float, model: Path) -> None:
    change_tensors(model, lambda t: t.__setitem__(NORM, torch.full((128,), value, dtype=torch.float32)))
    assert read_export_source(model)


def test_head_sizes_that_contradict_the_weights_are_named(model: Path) -> None:
    change(model / "config.json", head_dim=64)
    refuse(model, "self_attn.q_proj.weight is [256, 128], and config.json makes it [512, 128]", "head_dim")


def test_frequencies_stored_in_one_layer_are_no_weights(model: Path) -> None:
    name = "model.layers.2.self_attn.rotary_emb.inv_freq"
    change_tensors(model, lambda t: t.__setitem__(name, torch.ones(16)))
    assert read_export_source(model)
